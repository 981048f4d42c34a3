"""What an index leaves out: conditions on captions, pictures and fields, lists of keys, duplicates."""
