"""Commands of the line that are longer than a call: thin over the rooms, heavy imports inside."""
