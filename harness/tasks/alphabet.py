"""The characters of the embedded world, which its tokenizer knows one by one."""

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 +-=?.,"
