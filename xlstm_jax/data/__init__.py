"""Corpora, tokenizers, token shards and the loader."""
