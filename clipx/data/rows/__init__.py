"""What a person has, seen as rows: folders, tables, lists and shards; `opening.open_rows` finds out which it is."""
