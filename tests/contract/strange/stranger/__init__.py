"""A stranger's package: one file for each kind of plugin, by docs/extending.md."""
