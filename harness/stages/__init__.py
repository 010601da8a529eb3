"""Work that trials share: pure functions of their configuration and inputs, kept in the cache."""
