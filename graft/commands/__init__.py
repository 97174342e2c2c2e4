"""Commands by subject, each a thin shell: heavy rooms are imported only by the command that needs them."""
