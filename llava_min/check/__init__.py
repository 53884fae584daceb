"""A checkpoint's stages compared with transformers, one by one."""
