"""Where pictures and clips come from: sources, the web, films, subtitles, and their limits."""
