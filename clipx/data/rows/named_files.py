"""Whether the files that a table names are where they are looked for."""

import os
from itertools import islice

from clipx.data.rows.row import Rows

_LOOKED_AT = 1000


def lost_picture(rows: Rows) -> str | None:
    """The first picture's path, if not one of the first thousand that are named is there; None if one is, or none is.

    A file that is not there counts as an absent picture, so a wrong folder would be noticed by nobody.
    """
    named = list(islice(rows.files(), _LOOKED_AT))
    return named[0] if named and not any(map(os.path.lexists, named)) else None
