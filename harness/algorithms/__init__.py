"""Alignment algorithms, one small file each; a new one is such a file plus a YAML in ``conf/algo/``."""
