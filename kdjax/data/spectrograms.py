"""Sound as pictures: log-mel spectrograms."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def mel_filters(
    num_mels: int, window: int, sample_rate: int
) -> Float[np.ndarray, "mels frequencies"]:
    """Triangles of equal width on the mel scale, from 0 to half the sample rate, each of peak 1.

        mel(f) = 2595 log10(1 + f / 700)

    Args:
      num_mels: number of triangles.
      window: samples of a Fourier window.
      sample_rate: samples a second.

    Returns:
      `[num_mels, window // 2 + 1]`, in [0, 1].

    Raises:
      ValueError: so many triangles that one holds no frequency of the window.

    Source: the scale is that of the Hidden Markov Model Toolkit (Young et al. 2006).

    >>> mel_filters(3, 16, 8000).argmax(1).tolist()
    [1, 2, 5]
    """
    frequencies = np.linspace(0, sample_rate / 2, window // 2 + 1)
    highest = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, num_mels + 2) / 2595) - 1)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (peak - low), (high - frequencies) / (high - peak)
    filters = np.maximum(0, np.minimum(rising, falling))
    empty = np.flatnonzero(filters.sum(1) == 0)
    if len(empty):
        raise ValueError(
            f"num_mels={num_mels} is too many for windows of {window} samples: filter {empty[0]} "
            "holds no frequency"
        )
    return filters


def log_mel(
    audio: Float[np.ndarray, "batch samples"],
    sample_rate: int,
    *,
    window: int = 512,
    hop: int = 256,
    num_mels: int = 32,
    floor: float = 1e-6,
) -> Float[np.ndarray, "batch frames mels 1"]:
    """The logarithm of the energy in mel bands, frame by frame, as a picture of one channel.

        log(floor + sum_f filter[m, f] |FFT(hann * frame)[f]|^2)

    The sound is padded with `window / 2` zeros on both sides, as librosa centres its frames.

    Args:
      audio: `[N, S]`, in [-1, 1].
      sample_rate: samples a second.
      window: samples of a frame, even.
      hop: samples from one frame to the next.
      num_mels: bands.
      floor: added to the energy, > 0: what silence is.

    Returns:
      Float32 `[N, 1 + S // hop, num_mels, 1]`.

    Raises:
      ValueError: audio of another shape.

    >>> time = np.arange(8000) / 8000
    >>> picture = log_mel(np.sin(2 * np.pi * 1000 * time)[None], 8000)
    >>> picture.shape, int(picture[0, 16].argmax())
    ((1, 32, 32, 1), 14)
    """
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 2:
        raise ValueError(f"audio must be [batch, samples], got shape {audio.shape}")
    padded = np.pad(audio, ((0, 0), (window // 2, window // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window, axis=1)[:, ::hop]
    hann = np.hanning(window + 1)[:-1].astype(np.float32)
    filters = mel_filters(num_mels, window, sample_rate).T
    out = np.empty((*frames.shape[:2], num_mels, 1), np.float32)
    for i, clip in enumerate(
        frames
    ):  # a clip at a time: all windows at once are 32 times the sound
        energy = np.abs(np.fft.rfft(clip * hann)) ** 2
        out[i, ..., 0] = np.log(floor + energy @ filters)
    return out
