"""Simulated acute-stroke diffusion MRI on real anatomy.

Anatomy: the MNI152 grey- and white-matter probability maps that nilearn ships (Fonov et al., NeuroImage 2011), warped
per patient; what is neither inside the brain is cerebrospinal fluid. Signal: S(b) = PD * exp(-TE / T2) * exp(-b * ADC).

ADC in 1e-3 mm2/s: cortical grey matter 0.89, white matter 0.70 (Helenius et al., AJNR 2002, 23:194-199), CSF 3.0 (free
water at 37 C), acute infarct core below 0.62 (Purushotham et al., Int J Stroke 2015, 10:348-353). T2 in ms at 3 T: grey
99, white 69 (Stanisz et al., Magn Reson Med 2005, 54:507-512). Noise is Rician (Gudbjartsson and Patz, Magn Reson Med
1995, 34:910-914).
"""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.files import hashes

Array = NDArray[np.float32]


class Tissue(NamedTuple):
    """Apparent diffusion coefficient (1e-3 mm2/s), T2 (ms) and relative proton density."""

    adc: float
    t2: float
    density: float


GREY = Tissue(0.89, 99.0, 0.82)
WHITE = Tissue(0.70, 69.0, 0.70)
FLUID = Tissue(3.00, 1500.0, 1.00)
SHINE_THROUGH = Tissue(1.05, 190.0, 0.90)


class Site(NamedTuple):
    """A scanner: voxel size (mm, x,y,z), b-value (s/mm2), echo time (ms), relative noise, bias field and gain."""

    name: str
    voxel: tuple[float, float, float]
    b: float
    echo: float
    noise: float
    bias: float
    gain: float


SITES = (
    Site("north", (2.5, 2.5, 5.0), 1000, 80, 0.020, 0.15, 900.0),
    Site("harbour", (2.2, 2.2, 6.0), 1000, 70, 0.030, 0.25, 350.0),
    Site("valley", (3.0, 3.0, 5.0), 800, 90, 0.025, 0.20, 1600.0),
)
FIELD_MM = (154.0, 192.0, 150.0)
CENTRE_MM = (0.0, -18.0, 8.0)
WITHOUT_LESION = 0.1
VOLUME_ML = (0.2, 60.0)
MEDIAN_ML, LOG_SPREAD = 9.0, 1.2


def scanners(gap: float) -> tuple[Site, ...]:
    """The sites' scanners, their values `gap` times as far from the mean of all three as those in `SITES`; no voxel,
    noise or gain gets smaller than half the smallest there.
    """
    if gap == 1:
        return SITES
    values = np.array([[*site.voxel, *site[2:]] for site in SITES])
    mean = values.mean(axis=0)
    moved = np.maximum(mean + gap * (values - mean), values.min(axis=0) / 2)
    return tuple(Site(site.name, tuple(row[:3]), *row[3:]) for site, row in zip(SITES, moved.tolist(), strict=True))


def simulate(base: Path, patients: int, seed: int, gap: float = 1.0) -> Path:
    """Write `patients` patients in the ISLES'22 BIDS layout below `base`, of sites with `scanners(gap)`, and return the
    folder.

    The folder is named after the arguments and this file, so an existing one is used as it is; it appears complete or
    not at all. The same arguments give the same bytes.
    """
    root = base / f"phantom-{hashes.of_json([hashes.digest([Path(__file__)]), patients, seed, gap])[:10]}"
    if root.is_dir():
        return root
    partial = base / f"{root.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    template, rows, sites = _load_template(), [("participant_id", "patient", "site")], scanners(gap)
    for index in range(patients):
        site = sites[index % len(sites)]
        name = f"sub-phantom{index:04d}"
        _write_patient(partial, name, site, template, np.random.default_rng([seed, index]))
        rows.append((name, name, site.name))
    with (partial / "participants.tsv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows(rows)
    try:
        partial.rename(root)
    except OSError:
        if not root.is_dir():
            raise
        shutil.rmtree(partial)
    return root


class Template(NamedTuple):
    """Grey matter, white matter and brain, as fractions on the template's grid, and its voxel-to-mm affine."""

    fractions: tuple[Array, Array, Array]
    affine: NDArray[np.float64]


def _load_template() -> Template:
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    images = [load(resolution=2) for load in (load_mni152_gm_template, load_mni152_wm_template, load_mni152_template)]
    grey, white, head = (np.asarray(image.dataobj, dtype=np.float32) for image in images)
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(head > 0.1, iterations=2))
    return Template((grey, white, brain.astype(np.float32)), np.asarray(images[-1].affine, dtype=np.float64))


def _smooth_noise(shape: tuple[int, ...], sigma: tuple[float, ...], rng: np.random.Generator) -> Array:
    """A smooth random field of unit standard deviation; sigma in voxels."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap")
    return np.asarray(field / field.std(), dtype=np.float32)


def _anatomy(
    site: Site, template: Template, rng: np.random.Generator
) -> tuple[Array, Array, Array, Array, NDArray[np.float64]]:
    """One patient's grey, white and fluid fractions X,Y,Z, the MNI coordinates 3,X,Y,Z in mm, and the affine."""
    shape = tuple(round(extent / v) for extent, v in zip(FIELD_MM, site.voxel, strict=True))
    affine = np.diag([*site.voxel, 1.0])
    affine[:3, 3] = [
        c - v * (n - 1) / 2 + shift
        for c, v, n, shift in zip(CENTRE_MM, site.voxel, shape, rng.uniform(-3, 3, 3), strict=True)
    ]
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).reshape(3, -1)
    world = affine[:3, :3] @ grid + affine[:3, 3:]

    pitch, roll, yaw = np.deg2rad(rng.uniform(-6, 6, 3))
    rotation = _rotation(pitch, roll, yaw) @ np.diag(1 / rng.uniform(0.94, 1.08, 3))
    centre = np.array(CENTRE_MM)[:, None]
    mni = (rotation @ (world - centre) + centre).reshape(3, *shape)
    sigma = tuple(18.0 / v for v in site.voxel)
    mni = mni + np.stack([_smooth_noise(shape, sigma, rng) * rng.uniform(1.0, 2.5) for _ in range(3)])

    voxel = np.linalg.inv(template.affine)
    index = np.tensordot(voxel[:3, :3], mni, axes=1) + voxel[:3, 3][:, None, None, None]
    grey, white, brain = (
        ndimage.map_coordinates(volume, index, order=1, mode="constant") for volume in template.fractions
    )
    brain = (brain > 0.5).astype(np.float32)
    total = np.maximum(grey + white, 1.0)
    grey, white = grey / total * brain, white / total * brain
    return grey, white, np.clip(brain - grey - white, 0, 1), mni.astype(np.float32), affine


def _rotation(pitch: float, roll: float, yaw: float) -> NDArray[np.float64]:
    cx, cy, cz = np.cos([pitch, roll, yaw])
    sx, sy, sz = np.sin([pitch, roll, yaw])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def _territories(mni: Array) -> dict[str, NDArray[np.bool_]]:
    """The anterior, middle and posterior cerebral arteries' territories, roughly, by MNI coordinates in mm."""
    x, y, z = np.abs(mni[0]), mni[1], mni[2]
    cerebrum = z > -20
    posterior = cerebrum & (y < -58) | (cerebrum & (y < -40) & (x < 22) & (z < 20))
    anterior = cerebrum & ~posterior & (x < 16) & ((y > 0) | (z > 35))
    middle = cerebrum & ~posterior & ~anterior & (x > 16)
    return {"anterior": anterior, "middle": middle, "posterior": posterior}


def _blob(allowed: NDArray[np.bool_], mni: Array, voxels: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The `voxels` allowed voxels nearest to a random one, by a distance made irregular with a smooth field."""
    inside = np.flatnonzero(allowed)
    result = np.zeros(allowed.shape, dtype=bool)
    if not len(inside):
        return result
    points = mni.reshape(3, -1)[:, inside]
    centre = points[:, rng.integers(len(inside))]
    stretch = rng.uniform(0.7, 1.4, 3).astype(np.float32)
    distance = np.sqrt((((points - centre[:, None]) * stretch[:, None]) ** 2).sum(axis=0))
    rough = _smooth_noise(allowed.shape, (1.5, 1.5, 1.0), rng).ravel()[inside]
    distance = distance * (1 + 0.25 * rough)
    result.flat[inside[np.argsort(distance, kind="stable")[:voxels]]] = True
    return result


def _lesion(tissue: Array, mni: Array, voxel_ml: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """One infarct and up to three satellites inside one territory of one hemisphere, 0.2 to 60 ml in all."""
    if rng.random() < WITHOUT_LESION:
        return np.zeros(tissue.shape, dtype=bool)
    territory = rng.choice(["middle", "posterior", "anterior"], p=[0.7, 0.2, 0.1])
    side = mni[0] > 0 if rng.random() < 0.5 else mni[0] < 0
    allowed = _territories(mni)[territory] & side & (tissue > 0.8)
    volume = float(np.clip(rng.lognormal(np.log(MEDIAN_ML), LOG_SPREAD), *VOLUME_ML))
    voxels = max(int(np.ceil(volume / voxel_ml)), 1)
    satellites = int(rng.integers(0, 4)) if voxels >= 40 else 0
    shares = rng.uniform(0.01, 0.06, satellites)
    lesion = _blob(allowed, mni, round(voxels * (1 - shares.sum())), rng)
    for share in shares:
        lesion |= _blob(allowed, mni, max(round(voxels * share), 1), rng)
    return lesion


def _mix(parts: list[tuple[Array, Tissue]], site: Site) -> tuple[Array, Array]:
    """Noise-free signal at b = 0 and at the site's b-value, for fractions of tissues."""
    b0, weighted = np.zeros_like(parts[0][0]), np.zeros_like(parts[0][0])
    for fraction, tissue in parts:
        signal = fraction * np.float32(tissue.density * np.exp(-site.echo / tissue.t2))
        b0 += signal
        weighted += signal * np.float32(np.exp(-site.b * tissue.adc * 1e-3))
    return b0, weighted


def _rician(signal: Array, sigma: float, rng: np.random.Generator) -> Array:
    real, imaginary = (sigma * rng.standard_normal(signal.shape, dtype=np.float32) for _ in range(2))
    return np.asarray(np.hypot(signal + real, imaginary), dtype=np.float32)


def _write_patient(root: Path, name: str, site: Site, template: Template, rng: np.random.Generator) -> None:
    grey, white, fluid, mni, affine = _anatomy(site, template, rng)
    tissue = grey + white
    voxel_ml = float(np.prod(site.voxel)) / 1000
    lesion = _lesion(tissue, mni, voxel_ml, rng)
    shine = np.zeros_like(lesion)
    for _ in range(int(rng.integers(0, 4))):
        shine |= _blob((white > 0.5) & ~lesion, mni, max(int(rng.uniform(0.2, 3.0) / voxel_ml), 1), rng)
    core = Tissue(rng.uniform(0.35, 0.58), rng.uniform(95, 125), 0.85)

    infarct = np.clip(ndimage.gaussian_filter(lesion.astype(np.float32), 0.4), 0, 1) * tissue
    bright = np.clip(ndimage.gaussian_filter(shine.astype(np.float32), 0.4), 0, 1) * (tissue - infarct)
    healthy = np.divide(tissue - infarct - bright, tissue, out=np.zeros_like(tissue), where=tissue > 0)
    parts = [
        (grey * healthy, GREY), (white * healthy, WHITE), (fluid, FLUID), (infarct, core), (bright, SHINE_THROUGH),
    ]  # fmt: skip
    b0, weighted = _mix(parts, site)
    bias = np.exp(site.bias * _smooth_noise(b0.shape, tuple(35.0 / v for v in site.voxel), rng))
    sigma = site.noise * float(np.percentile(b0[b0 > 0], 50))
    b0, weighted = _rician(b0 * bias, sigma, rng), _rician(weighted * bias, sigma, rng)
    brain = (tissue + fluid) > 0.5
    adc = np.log(np.maximum(b0, 1e-6) / np.maximum(weighted, 1e-6)) / site.b * 1000
    gain = site.gain * rng.uniform(0.8, 1.25)
    images, stem = root / name / "ses-0001" / "dwi", f"{name}_ses-0001"
    masks = root / "derivatives" / name / "ses-0001"
    _save(images / f"{stem}_dwi.nii.gz", np.where(brain, weighted * gain, 0).astype(np.float32), affine)
    _save(images / f"{stem}_adc.nii.gz", np.where(brain, np.clip(adc, 0, 5), 0).astype(np.float32), affine)
    _save(masks / f"{stem}_msk.nii.gz", (lesion & brain).astype(np.uint8), affine)
    side_car = {"Simulated": True, "DiffusionBValue": site.b, "EchoTime": site.echo, "Site": site.name}
    (images / f"{stem}_dwi.json").write_text(json.dumps(side_car, indent=1), encoding="utf-8")


def _save(path: Path, values: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    import nibabel as nib

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
