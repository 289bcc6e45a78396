"""The log: exchanges as data, the store that writes them to logs.db, and its readers."""
