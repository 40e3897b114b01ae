"""Words to seconds of sound: trimming, rooms, noise, channels, levels."""

import io

import numpy as np
import soundfile

SAMPLE_RATE = 16000
CLIP_SAMPLES = SAMPLE_RATE
NOISES = ("white", "pink", "brown", "babble", "hum")
SNR_DB = (5.0, 25.0)
RT60_SECONDS = (0.1, 0.5)
DIRECT_TO_REVERBERANT_DB = (3.0, 18.0)
TILT_DB_PER_OCTAVE = (-3.0, 3.0)
PEAK_DB = (-20.0, -1.0)


def write_flac(path, audio):
    """Write 16-bit FLAC.

    Arguments
    ---------
    path : Path
        Where to.
    audio : numpy.ndarray
        (samples,) at 16 kHz, within -1 and 1.
    """
    # Through memory: soundfile waits for the disk after every file.
    flac = io.BytesIO()
    soundfile.write(flac, audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    path.write_bytes(flac.getvalue())


def trim(audio, sample_rate, threshold_db=-50.0, margin=0.01):
    """Cut the silence before and after, and fade the cuts.

    Arguments
    ---------
    audio : numpy.ndarray
        (samples,)
    sample_rate : int
        In Hz.
    threshold_db : float
        What is quieter than this, relative to the peak, is silence.
    margin : float
        Seconds that are left of the silence at each end.

    Returns
    -------
    audio : numpy.ndarray
        (fewer samples,)

    Example
    -------
    >>> len(trim(np.r_[np.zeros(900), np.ones(50), np.zeros(900)], 1000))
    70
    """
    level = np.abs(audio)
    loud = np.flatnonzero(level > level.max() * 10 ** (threshold_db / 20))
    margin = round(margin * sample_rate)
    audio = np.pad(audio, margin)[loud[0] : loud[-1] + 1 + 2 * margin].copy()
    ramp = np.linspace(0, 1, margin, endpoint=False)
    audio[:margin] *= ramp
    audio[-margin:] *= ramp[::-1]
    return audio


def resample(audio, sample_rate):
    """Bring audio that is silent at both ends to 16 kHz.

    Arguments
    ---------
    audio : numpy.ndarray
        (samples,)
    sample_rate : float
        Of `audio` in Hz; where it is lower the uppermost part stays empty.

    Returns
    -------
    audio : numpy.ndarray
        (samples * 16000 / sample_rate,)

    Example
    -------
    >>> t = np.arange(2205) / 22050
    >>> tone = np.hanning(2205) * np.sin(2 * np.pi * 440 * t)
    >>> t = np.arange(1600) / 16000
    >>> same = np.interp(t, np.arange(2205) / 22050, tone)
    >>> bool(np.abs(resample(tone, 22050) - same).max() < 0.01)
    True
    """
    n_samples = round(len(audio) * SAMPLE_RATE / sample_rate)
    spectrum = np.fft.rfft(audio)[: n_samples // 2 + 1]
    return np.fft.irfft(spectrum, n_samples) * (n_samples / len(audio))


def make_clip(word, babble, rng, snr_db=SNR_DB):
    """Put a word into a second of sound.

    Arguments
    ---------
    word : numpy.ndarray
        (samples,) at 16 kHz, shorter than a clip.
    babble : list of numpy.ndarray
        Speech at 16 kHz for the background, each longer than a clip.
    rng : numpy.random.Generator
        Source of all that is random.
    snr_db : tuple of float
        The least and the greatest level of the word over the noise.

    Returns
    -------
    audio : numpy.ndarray
        (16000,) within -1 and 1.
    """
    start = rng.integers(CLIP_SAMPLES - len(word) + 1)
    speech = np.zeros(CLIP_SAMPLES)
    speech[start : start + len(word)] = word
    speech = reverberate(speech, rng)
    noise = make_noise(rng.choice(NOISES), babble, rng)
    # The power of the word itself: silence around it does not count.
    power = np.mean(speech[start : start + len(word)] ** 2)
    noise_power = power / 10 ** (rng.uniform(*snr_db) / 10)
    noise *= np.sqrt(noise_power / np.mean(noise**2))
    audio = tilt(speech + noise, rng.uniform(*TILT_DB_PER_OCTAVE))
    peak = 10 ** (rng.uniform(*PEAK_DB) / 20)
    return audio * (peak / np.abs(audio).max())


def reverberate(audio, rng):
    """Play audio in a random room.

    The impulse response is the direct sound and exponentially decaying
    noise (Polack's model); the part that outlasts the clip is cut.

    Arguments
    ---------
    audio : numpy.ndarray
        (samples,) at 16 kHz.
    rng : numpy.random.Generator
        Draws reverberation time, distance and response.

    Returns
    -------
    audio : numpy.ndarray
        (samples,)
    """
    rt60 = rng.uniform(*RT60_SECONDS)
    seconds = np.arange(round(rt60 * SAMPLE_RATE)) / SAMPLE_RATE
    decay = 10 ** (-3 * seconds / rt60)
    response = rng.standard_normal(len(seconds)) * decay
    response[seconds < 0.002] = 0.0
    ratio = 10 ** (rng.uniform(*DIRECT_TO_REVERBERANT_DB) / 10)
    response /= np.sqrt(ratio * np.sum(response**2))
    response[0] = 1.0
    n_fft = 1 << (len(audio) + len(response) - 1).bit_length()
    spectrum = np.fft.rfft(audio, n_fft) * np.fft.rfft(response, n_fft)
    return np.fft.irfft(spectrum, n_fft)[: len(audio)]


def make_noise(kind, babble, rng):
    """Make a second of background noise.

    Arguments
    ---------
    kind : str
        "white", "pink", "brown" (power falling by 0, 3, 6 dB an octave),
        "babble" (several people talking) or "hum" (of the mains).
    babble : list of numpy.ndarray
        Speech at 16 kHz, each longer than a clip.
    rng : numpy.random.Generator
        Source of the noise.

    Returns
    -------
    noise : numpy.ndarray
        (16000,) of any power.
    """
    if kind == "babble":
        noise = np.zeros(CLIP_SAMPLES)
        for i in rng.choice(len(babble), rng.integers(4, 8), replace=False):
            start = rng.integers(len(babble[i]) - CLIP_SAMPLES + 1)
            noise += babble[i][start : start + CLIP_SAMPLES]
        return noise
    noise = rng.standard_normal(CLIP_SAMPLES)
    if kind == "hum":
        phase = 2 * np.pi * rng.choice([50.0, 60.0]) / SAMPLE_RATE
        phase = phase * np.arange(CLIP_SAMPLES)
        for harmonic in range(1, 16):
            amplitude = rng.exponential() * 10 / harmonic
            shift = rng.uniform(0, 2 * np.pi)
            noise += amplitude * np.sin(harmonic * phase + shift)
        return noise
    return tilt(noise, {"white": 0.0, "pink": -3.0, "brown": -6.0}[kind])


def tilt(audio, db_per_octave):
    """Turn the spectrum about 1 kHz; level below 60 Hz.

    Arguments
    ---------
    audio : numpy.ndarray
        (samples,) at 16 kHz.
    db_per_octave : float
        Positive: brighter.

    Returns
    -------
    audio : numpy.ndarray
        (samples,)
    """
    frequency = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
    octaves = np.log2(np.maximum(frequency, 60.0) / 1000)
    gain = 10 ** (db_per_octave * octaves / 20)
    return np.fft.irfft(np.fft.rfft(audio) * gain, len(audio))
