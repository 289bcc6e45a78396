"""The log: exchanges as plain data, their store in logs.db, and the thread that writes it."""
