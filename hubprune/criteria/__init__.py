"""Built-in criteria, one file each; the table of methods in ``presets`` names them."""
