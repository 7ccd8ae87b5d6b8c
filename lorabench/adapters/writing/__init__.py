"""Adapters written whole or not at all, in the layouts that loaders know."""
