"""The portable archive: one ``.tar.gz`` that tar, gunzip and psql can restore by hand."""
