"""What is shown holds no secret and no character that a terminal obeys."""

import json

import pytest

from clipx.errors import InputError, RunError
from clipx.printable import (
    _MOST_MET,
    REDACTED,
    _met,
    json_text,
    label,
    printable,
    redact,
    redacted,
    shown,
    unsigned,
)

SECRET = "s3cr3tV4lue"
SIGNED = "https://b.s3.amazonaws.com/a/00000.tar?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={0}%2F20260101"
SIGNED += "%2Fs3%2Faws4_request&X-Amz-Date=20260101T000000Z&X-Amz-Security-Token={0}&X-Amz-Signature={0}"


@pytest.mark.parametrize(
    "text",
    [
        SIGNED,
        "https://u:{0}@host/00000.tar",
        "https://u:{0}@with@at@host/00000.tar",
        "https://:{0}@host:8080/{{00000..00009}}.tar",
        "https://{0}{0}@host/00000.tar",
        "ftp://u:{0}@host/a.tar::https://v:{0}@host/b.tar",
        "https://a.blob.core.windows.net/c/0.tar?sv=2024-01-01&se=2026&sr=b&sp=r&sig={0}",
        "https://storage.googleapis.com/b/0.tar?GoogleAccessId=me&Expires=17&Signature={0}",
        "https://d.cloudfront.net/0.tar?Expires=17&Key-Pair-Id=K&Policy=eyJ&Signature={0}",
        "https://h/0.tar?token={0}",
        "https://h/0.tar?access_token={0}&x=1",
        "https://h/0.tar?api_key={0}#part",
        "https://h/0.tar?hdnea={0}{0}",
        'pipe:curl -H "Authorization: Bearer {0}" https://h/0.tar',
        "pipe:curl -H 'authorization: token {0}' https://h/0.tar",
        "pipe:curl -H 'Authorization: {0}' https://h/0.tar",
        "pipe:curl -H 'X-Api-Key: {0}' https://h/0.tar",
        "pipe:curl -H 'PRIVATE-TOKEN: {0}' https://h/0.tar",
        "pipe:curl -u me:{0} https://h/0.tar",
        "pipe:curl --user 'me:{0}' https://h/0.tar",
        "pipe:wget --http-password={0} -qO- https://h/0.tar",
        "pipe:tool --token {0} 0.tar",
        "pipe:AWS_SECRET_ACCESS_KEY={0} aws s3 cp s3://b/0.tar -",
        "pipe:HF_TOKEN='{0}' cat 0.tar",
        "403 Client Error: Forbidden for url: https://h/0.tar?signature={0}; check the rights",
    ],
)
def test_secrets_are_left_out_and_the_rest_stays(text: str) -> None:
    full = text.format(SECRET)
    clean = redact(full)
    assert SECRET not in clean
    assert REDACTED in clean
    assert redact(clean) == clean
    for part in ("0.tar", "://", "host"):
        assert clean.count(part) == full.count(part)


@pytest.mark.parametrize(
    "text",
    [
        "https://${USER}:${PASSWORD}@host/0.tar?sig=${SIG}&X-Amz-Signature=${SIGNATURE_OF_ALL_SHARDS}",
        'pipe:curl -H "Authorization: Bearer $TOKEN" https://h/0.tar',
        'pipe:curl -H "Authorization: Bearer $(gcloud auth print-access-token)" https://h/0.tar',
        "pipe:curl -u me:$PASSWORD https://h/0.tar",
        "pipe:tool --token ${TOKEN} TOKEN=$TOKEN",
        "hf://datasets/user/name@main/0.tar",
        "s3://bucket/a@b:c/{00000..00009}.tar",
        "sftp://me@host/0.tar",
        "http://localhost:8000/a:b@c.tar",
        "https://h/0.tar?download=true&versionId=3sL4kqtJlcpXroDTDmJ_rmSpXd3dIbrHY&n=3",
        "data.image_key=jpg;png: expected text; data.caption_key: none",
        "model.text.tokenizer=clip embeds 49408 tokens, the tokenizer has 9; texts_with_other_token_ids by 1",
        "step 3/10: loss=1.5 lr=3e-4 -u",
        "a photo of a cookie: {c}, password=swordfish, the bearer standing-there, authorization: none --token x",
        "/data/token=1/x y.tar".replace("token=1", "tokens=1"),
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SIGNED.format("a"), SIGNED.format("b").replace("20260101T000000Z", "20270101T000000Z")),
        ("https://u:a@h/0.tar?n=1", "https://v:b@h/0.tar?n=1"),
        (
            "https://d.cloudfront.net/0.tar?Expires=1&Signature=a&Policy=a&Key-Pair-Id=a",
            "https://d.cloudfront.net/0.tar",
        ),
        (
            "https://a.blob.core.windows.net/c/0.tar?sv=1&se=1&sr=b&sp=r&sig=a",
            "https://a.blob.core.windows.net/c/0.tar",
        ),
    ],
)
def test_the_next_signature_of_a_file_gives_the_same_name(one: str, other: str) -> None:
    assert unsigned(one) == unsigned(other)
    assert label(one) == label(other)
    assert REDACTED not in label(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://h/get?key=0.tar", "https://h/get?key=1.tar"),
        ("https://h/get?id=1aBcDeFgHiJkLmNoPqRsTuVwXyZ", "https://h/get?id=2aBcDeFgHiJkLmNoPqRsTuVwXyZ"),
        ("https://h/get?token=s3cr3t", "https://h/get?token=other"),
        ("https://h/get?sp=1", "https://h/get?sp=2"),
        (SIGNED.format("a"), SIGNED.format("a").replace("00000", "00001")),
        ("pipe:curl -u a:b https://h/0.tar", "pipe:curl -u a:b https://h/1.tar"),
        ("pipe:curl 'https://h/0.tar?sig=a&sr=b' | 1", "pipe:curl 'https://h/0.tar?sig=a&sr=b' | 2"),
        ("pipe:curl 'https://h/0.tar?sig=a&sr=1", "pipe:curl 'https://h/0.tar?sig=a&sr=2"),
    ],
)
def test_other_files_have_other_names_whatever_is_left_out(one: str, other: str) -> None:
    assert unsigned(one) != unsigned(other)
    assert label(one) != label(other)
    assert redact(label(one)) == label(one)


def test_strings_deep_in_plain_values_are_redacted() -> None:
    address = "https://u:p@h/0.tar"
    assert redacted({"a": [address, 3, None], "b": {"c": (address,)}}) == {
        "a": ["https://u:REDACTED@h/0.tar", 3, None],
        "b": {"c": ("https://u:REDACTED@h/0.tar",)},
    }


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m red", r"\x9b31m red"),
        ("a\nb\rc\td\x7f\x00", r"a\nb\rc\td\x7f\x00"),
        ("photo\u202egnp.exe", r"photo\u202egnp.exe"),
        ("\u2066a\u2069 \u200b\ufeff\u2028", r"\u2066a\u2069 \u200b\ufeff\u2028"),
        ("\U000e0041hidden", r"\U000e0041hidden"),
        ("caf\udce9.jpg", r"caf\udce9.jpg"),
        ("Zürich 東京 🗼 👩‍👩‍👧 [bold]x[/bold] \\x1b", "Zürich 東京 🗼 👩‍👩‍👧 [bold]x[/bold] \\x1b"),
    ],
)
def test_what_a_terminal_obeys_becomes_visible(text: str, visible: str) -> None:
    assert printable(text) == visible
    assert printable(visible) == visible


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_the_text_of_an_error_is_fit_to_be_shown(kind: type[Exception]) -> None:
    error = kind("shard https://u:p@h/0.tar: key 'a\x1b[31mb'\nsecond line")
    assert str(error) == "shard https://u:REDACTED@h/0.tar: key 'a\\x1b[31mb'\nsecond line"


def test_json_for_people_has_the_same_value_and_nothing_that_a_terminal_obeys() -> None:
    row = {"key": "a\x1b[31m\x9b\u202e\U000e0041\udce9", "caption": "Zürich\n"}
    text = json_text(row)
    assert json.loads(text) == row
    assert printable(text) == text
    assert "Zürich" in text


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://k:p4ssw0rd-1@b/0.tar", 'Invalid bucket name "k:p4ssw0rd-1@b"'),
        ("https://u:p%40ss-w0rd@h/0.tar", "no host h for user u (p@ss-w0rd)"),
        ("https://h/0.tar?sig=s1gn4ture-2", "GET /0.tar?sig=s1gn4ture-2 HTTP/1.1: 403"),
        ("https://t0k3n-t0k3n-t0k3n-t0k3n@h/0.tar", "t0k3n-t0k3n-t0k3n-t0k3n@h does not answer"),
    ],
)
def test_a_part_of_an_address_in_a_message_keeps_its_secret_too(address: str, said: str) -> None:
    secrets = ("p4ssw0rd-1", "p@ss-w0rd", "s1gn4ture-2", "t0k3n-t0k3n-t0k3n-t0k3n")
    assert not any(secret in shown(f"{address} cannot be read: {said}") for secret in secrets)
    assert not any(secret in shown(said) for secret in secrets)  # in the next line, too


def test_what_is_remembered_of_many_signatures_has_a_limit() -> None:
    for number in range(100):
        redact(f"https://h/{number}.tar?sig=signature-{number}")
    assert len(_met) == _MOST_MET
    shown("https://u:short@h/0.tar")
    assert shown("a short caption") == "a short caption"
    assert (
        label("https://h/signature-99/0.tar") == "https://h/signature-99/0.tar"
    )  # a name is the same in every process
