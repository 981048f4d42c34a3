"""Where bytes come from: local files, stores and web servers through fsspec, commands, and a cache on disk."""
