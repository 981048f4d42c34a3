"""The page of `clipx search --serve`: a form, and what was found; it searches without JavaScript, too.

The script does one thing: a picture that is dropped on the page is sent by the form.
"""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from clipx.pages import Html, contact_sheet, page, paragraph, text
from clipx.use.found_files import alt, cell, subtitle

if TYPE_CHECKING:
    from clipx.use.find import Finder, Found

SCRIPT = """
const form = document.getElementById("by-picture");
const field = form.elements.picture;
field.addEventListener("change", () => { if (field.files.length) form.submit(); });
addEventListener("dragover", event => {
  event.preventDefault();
  form.classList.add("over");
});
addEventListener("dragleave", () => form.classList.remove("over"));
addEventListener("drop", event => {
  event.preventDefault();
  form.classList.remove("over");
  if (event.dataTransfer.files.length) {
    field.files = event.dataTransfer.files;
    form.submit();
  }
});
"""

POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; "
    f"frame-ancestors 'none'; script-src 'sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}'"
)
"""What a browser may load for the page: from this server alone, and no script but ours."""

_KINDS = {"image": "pictures", "text": "texts"}
_AT_ONCE = 60  # pictures that are asked for before somebody scrolls to them
_STYLE = """
form{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center;margin:.75rem 0}
input,select,button{font:inherit;color:inherit;background:var(--panel);border:1px solid var(--quiet);
border-radius:6px;padding:.4rem .6rem;max-width:100%}
input[type=search]{flex:1 1 18rem;min-width:0}
input[type=number]{width:6rem}
input[type=file]{width:22rem}
label{max-width:100%}
button{cursor:pointer;font-weight:600}
#by-picture{border:1px dashed var(--quiet);border-radius:6px;padding:.6rem}
#by-picture.over{border-color:var(--link);background:var(--panel)}
"""


class Form(NamedTuple):
    """What stands in the form."""

    text: str
    k: int
    by: str
    """The kind of embeddings that is searched."""
    kinds: Sequence[str]
    """Those that could be."""


def search_page(
    finder: "Finder", found: "Sequence[Found] | None", form: Form, *, title: str = "", problem: str = ""
) -> str:
    """The whole page.

    Args:
        finder: what is searched.
        found: None before anything is asked for.
        form: what was asked for.
        title: of what was found.
        problem: what is wrong with the question, or with the pictures.
    """
    body = [Html(f"<style>{_STYLE}</style>"), _forms(form)]
    if problem:
        body.append(Html(f'<p class="alert" role="alert">{text(problem)}</p>'))
    if found is not None:
        body.append(Html(f"<h2>{text(title)}</h2>"))
        body.append(contact_sheet(cell(row, _linked(row, form)) for row in found))
    elif not problem:
        body.append(paragraph("Type what you look for, or give a picture. A click on a picture finds what is like it."))
    return page("Search", body, subtitle=subtitle(finder), script=SCRIPT)


def _forms(form: Form) -> Html:
    number = f'<label>how many <input type="number" name="k" min="1" value="{form.k}"></label>'
    options = "".join(
        f'<option value="{kind}"{" selected" if kind == form.by else ""}>{_KINDS[kind]}</option>' for kind in form.kinds
    )
    kinds = f'<select name="by" aria-label="What is searched">{options}</select>' if len(form.kinds) > 1 else ""
    return Html(
        '<form action="/" method="get" role="search">'
        f'<input type="search" name="q" value="{text(form.text)}" aria-label="What to look for" '
        'placeholder="a red bicycle" autofocus required>'
        f"{kinds}{number}<button>Search</button></form>"
        '<form id="by-picture" action="/" method="post" enctype="multipart/form-data">'
        '<label>or a picture, also dropped here <input type="file" name="picture" accept="image/*" required></label>'
        f'<input type="hidden" name="k" value="{form.k}"><input type="hidden" name="by" value="{form.by}">'
        "<button>Search by it</button></form>"
    )


def _linked(row: "Found", form: Form) -> Html:
    """A row's picture, which leads to what is like it."""
    like = urlencode({"row": row.row, "k": form.k, "by": form.by})
    lazy = ' loading="lazy"' if row.rank > _AT_ONCE else ""
    return Html(f'<a href="/?{text(like)}"><img src="/picture/{row.row}" alt="{text(alt(row))}"{lazy}></a>')
