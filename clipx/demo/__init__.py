"""`clipx demo`: the whole job on pictures that it draws itself."""
