"""What a report keeps to itself."""

from __future__ import annotations

import pytest

from llama_images.redaction import Self, redacted

ME = Self(home="/home/jane.doe", user="jane.doe", host="tower.example.org")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("17 GB free in /home/jane.doe/.cache/models", "17 GB free in ~/.cache/models"),
        ("/home/john/models/a.gguf", "/home/(name)/models/a.gguf"),
        ("/mnt/disk-of-jane/a.gguf", "/mnt/(name)/a.gguf"),
        ("https_proxy=http://jane:secret@proxy.corp:3128", "https_proxy=http://(host):3128"),
        ("https_proxy=http://[fe80::1]:3128/", "https_proxy=http://(host):3128/"),
        ("huggingface.co: https://huggingface.co/a/b", "huggingface.co: https://huggingface.co/a/b"),
        ("no route to 192.168.1.17 from tower", "no route to (host) from (host)"),
        ("tower.example.org answers", "(host) answers"),
        ("GPU-9eb6e4be-29b6-e5c2-ca92-0f120484ad10", "GPU-(uuid)"),
        ("token hf_AbCdEfGhIjKlMnOpQrSt", "token (token)"),
        ("mail jane@example.org, 0a:1b:2c:3d:4e:5f", "mail (address), (hardware address)"),
        ("owned by jane.doe", "owned by (user)"),
        ("hub.corp: curl https://hub.corp/x", "(host): curl https://(host)/x"),
        ("no_proxy=localhost,.corp", "no_proxy=(hosts)"),
    ],
)
def test_what_names_a_person_or_a_machine_is_taken_out(text: str, expected: str) -> None:
    assert redacted(text, ME, public=["huggingface.co"]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "driver 580.159.04, CUDA 12.8.1, container toolkit 1.17.8",
        "NVIDIA H200, compute capability 9.0, 139.8 of 140.4 GiB free, PCIe 5 x16",
        "llama-diffusion:sm120 sees 2 GPUs in a container",
        "0 RTX 5060 Ti  20  9.21  -  3.41  1.73  1.00  15.35  15.73  0.39",
        "-ts 6,5 -n 16128 --diffusion-kv-cache on",
        "0000:00:06.0 on the bus; /dev/nvidia0, /usr/bin/docker, /etc/cdi/nvidia.yaml",
    ],
)
def test_what_a_reader_needs_stays(text: str) -> None:
    assert redacted(text, ME) == text


def test_a_short_name_is_not_searched_for() -> None:
    assert redacted("a on it", Self(home="/", user="a", host="it")) == "a on it"
