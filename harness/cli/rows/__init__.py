"""Commands about rows of data."""
