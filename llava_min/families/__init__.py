"""What differs from family to family: configurations, chat templates, what a folder says."""
