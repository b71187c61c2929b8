"""A site's installation: its folder, site file, keys and books, opened together. Nothing here trains or sends."""
