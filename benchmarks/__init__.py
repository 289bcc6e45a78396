"""The benchmark: llmproxy beside its peers and beside what asyncio allows."""
