# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Beyond images: a shape, a sound and a scan
#
# At the end you will know how to take the kernel of what is really measured of a network, be it a distance, a sound or
# an integral along a ray, how to read from it which network suits the signal, and how the trained networks compare
# with that, and with a classical method.
#
# Every task has the same parts: `task.x` and `task.y` are where and what was measured, `task.observe(apply)` is what
# that measurement makes of a network, and `task.reconstruct` turns the trained network into the signal.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal
from matplotlib import pyplot as plt

import ntk_inr as ni
from ntk_inr.style import FAST, MARKERS, MEASURED, PALETTE, PREDICTED, SEQUENTIAL, figure_style

STEPS = 200


def network(name, settings=None):
    """Return a function that draws (apply, params) at coordinates; compiled once for all values of a setting."""
    net = ni.variant(name, features=64, depth=3)
    return lambda task: ni.init(net, jax.random.key(0), task.x, settings=settings)


def look(observed, params, x, y):
    """Return cv of the kernel, and what is left of the target after its k fastest modes, for k = 1 to n."""
    K = np.asarray(ni.ntk(observed, params, x), float)
    energy = ni.alignment(K, y - np.asarray(observed(params, jnp.asarray(x)))).energy
    return float(ni.moments(K).cv), np.maximum(1 - np.cumsum(energy), 1e-6)


def plot_left(axis, looks, title):
    """Draw what is left of a target against the number of modes."""
    for color, marker, (name, (cv, left)) in zip(PALETTE, MARKERS, looks.items()):
        k = np.arange(1, len(left) + 1)
        axis.loglog(k, left, color=color, marker=marker, markevery=0.12, ms=5, label=f"{name}, cv {cv:.1f}")
    axis.set(xlabel="fastest modes of the kernel", ylabel="share of the target left", title=title, ylim=(1e-4, 1.3))
    axis.legend(loc="lower left")


def train(task, model, learning_rate=1e-3, rows=slice(None), **options):
    """Return a training run on what is measured of a network."""
    key = (learning_rate, STEPS)
    if key not in OPTIMIZERS:  # the same object, so that runs share a compilation
        OPTIMIZERS[key] = ni.optimizer("adam", learning_rate=learning_rate, schedule="cosine", steps=STEPS)
    apply, params = model
    return ni.fit(
        task.observe(apply), params, task.x[rows], task.y[rows], optimizer=OPTIMIZERS[key], steps=STEPS, loss=task.loss,
        data_range=task.data_range, **options,
    )  # fmt: skip


OPTIMIZERS = {}

# %% [markdown]
# ## A shape: which network knows a distance?
#
# The task is the signed distance to a torus, negative inside. `task.loss` is the absolute error, and the score is the
# intersection of the two solids over their union (IoU).

# %%
torus = ni.shape_task("torus", points=3000, resolution=40)
shape_networks = {
    "relu": network("relu"),
    "siren, ω = 10": network("siren", {"activation.omega": 10.0}),
    "siren, ω = 30": network("siren", {"activation.omega": 30.0}),
}
shape_models = {name: draw(torus) for name, draw in shape_networks.items()}
some = np.random.default_rng(0).permutation(len(torus.x))[:1000]
shape_looks = {
    name: look(torus.observe(apply), params, torus.x[some], torus.y[some])
    for name, (apply, params) in shape_models.items()
}

# %%
surfaces = {}
for name, (apply, params) in shape_models.items():
    run = train(torus, (apply, params))
    surfaces[name] = torus.reconstruct(lambda c, apply=apply, run=run: apply(run.params, c))
ious = {name: torus.scores(surface)["iou"] for name, surface in surfaces.items()}

# %%
with figure_style():
    figure, axis = plt.subplots(figsize=(6.2, 3.6))
    plot_left(axis, shape_looks, "The lowest cv leaves most of the distance to slow modes")
    plt.show()

# %% [markdown]
# The lowest cv is not the best here. A distance is smooth, and ω = 30 spreads it over hundreds of modes: it is slow to
# learn, and what is fitted between the points is noise. ReLU and ω = 10 have it in a few.

# %%
with figure_style():
    figure = plt.figure(figsize=(13, 3.6), layout="none")
    figure.subplots_adjust(left=0, right=1, bottom=0.02, top=0.9, wspace=0)
    panels = {"the torus": torus.solid} | surfaces
    for place, (name, surface) in enumerate(panels.items(), 1):
        axis = figure.add_subplot(1, 4, place, projection="3d")
        axis.plot_trisurf(
            *surface.vertices.T, triangles=surface.faces, color=PALETTE[5], linewidth=0, antialiased=False
        )
        axis.set(xlim=(-0.7, 0.7), ylim=(-0.7, 0.7), zlim=(-0.7, 0.7), box_aspect=(1, 1, 1))
        axis.set_title(name + (f": IoU {ious[name]:.2f}" if name in ious else ""), y=0.95)
        axis.view_init(elev=35, azim=-60)
        axis.set_axis_off()
    plt.show()

# %% [markdown]
# The network with sines of a moderate frequency wins: it has the distance in few modes, and it is smooth.

# %% [markdown]
# ## A sound: what does ω₀ do?
#
# A quarter of a second of a chord. Every second sample is trained on, the others show what comes out between them. ω₀
# is the frequency of the first layer's weights: the time is scaled by ω₀ / 30. Later layers, and biases, have 30.

# %%
chord = ni.audio_task("chord", seconds=0.25)
even, odd = np.arange(0, len(chord.x), 2), np.arange(1, len(chord.x), 2)
omegas = [30, 90, 300, 900, 3000]
first_omega = ni.variant("siren", features=64, depth=3, encoding=ni.networks.Identity())
sound_models = {
    omega: ni.init(first_omega, jax.random.key(0), chord.x, settings={"encoding.scale": omega / 30}) for omega in omegas
}
sound_looks = {omega: look(*model, chord.x[even], chord.y[even]) for omega, model in sound_models.items()}


def snr(found, rows):
    """Return the signal-to-noise ratio in dB on some samples."""
    return 10 * np.log10(np.sum(chord.samples[rows] ** 2) / np.sum((found - chord.samples)[rows] ** 2))


sounds = {}
for omega, (apply, params) in sound_models.items():
    run = train(chord, (apply, params), 5e-4, even)
    sounds[omega] = chord.reconstruct(lambda c, apply=apply, run=run: apply(run.params, c))

# %%
with figure_style():
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.6))
    plot_left(
        axes[0],
        {f"ω₀ = {omega}": found for omega, found in sound_looks.items()},
        "A middle ω₀ has the chord in fewest modes",
    )
    needed = [int(np.argmax(left < 0.1)) + 1 for _, left in sound_looks.values()]
    axes[1].plot(omegas, needed, "s--", color=PREDICTED)
    axes[1].set(ylim=(0, 1000), xlabel="ω₀ of the first layer", ylabel="modes for 90 % of the energy")
    axes[1].set_title(f"Before training: ω₀ = {omegas[int(np.argmin(needed))]} needs fewest")
    between = [snr(found, odd) for found in sounds.values()]
    axes[2].plot(omegas, [snr(found, even) for found in sounds.values()], "^-", color=FAST, label="samples trained on")
    axes[2].plot(omegas, between, "o-", color=MEASURED, label="samples between them")
    axes[2].set(xlabel="ω₀ of the first layer", ylabel="SNR [dB]")
    axes[2].set_title(f"After training: ω₀ = {omegas[int(np.argmax(between))]} is best between samples")
    axes[2].legend(loc="upper left")
    for axis in axes[1:]:
        axis.set_xscale("log")
        axis.set_xticks(omegas, [str(omega) for omega in omegas])
        axis.minorticks_off()
    plt.show()

# %% [markdown]
# The kernel at initialisation points to the ω₀ that is best between the samples. A higher ω₀ fits the samples better
# and better, and the sound between them is lost.

# %%
shown = {"the chord": chord.samples, "ω₀ = 90": sounds[90], "ω₀ = 3000": sounds[3000]}
times = np.arange(len(chord.samples)) / chord.rate * 1000
window = slice(1000, 1080)
with figure_style():
    figure, axes = plt.subplots(2, 3, figsize=(13, 5), sharey="row", height_ratios=[1, 1.3])
    for column, (name, sound) in enumerate(shown.items()):
        axes[0, column].plot(times[window], sound[window], color=FAST if column else MEASURED)
        axes[0, column].plot(times[window][::2], chord.samples[window][::2], ".", color=MEASURED, ms=4)
        title = f"{name}: {snr(sound, odd):.0f} dB between samples" if column else name
        axes[0, column].set(title=title, xlabel="time [ms]")
        frequencies, frames, power = scipy.signal.spectrogram(sound, chord.rate, nperseg=256, noverlap=192)
        decibels = 10 * np.log10(power + 1e-12)
        top = decibels.max() if column == 0 else top
        drawn = axes[1, column].pcolormesh(
            frames * 1000, frequencies / 1000, decibels, vmin=top - 70, vmax=top, cmap=SEQUENTIAL, rasterized=True
        )
        axes[1, column].set(xlabel="time [ms]")
        axes[1, column].grid(False)
    axes[0, 0].set_ylabel("amplitude")
    axes[1, 0].set_ylabel("frequency [kHz]")
    figure.colorbar(drawn, ax=axes[1], label="power [dB]")
    plt.show()

# %% [markdown]
# ## A scan: what are integrals along rays worth?
#
# `task.y` are integrals of the Shepp-Logan phantom along rays, and `task.observe(apply)` integrates the network along
# the same rays, so that kernel and training see what a scanner sees. Filtered back projection is the classical method.

# %%
scans = {angles: ni.tomography_task("shepp-logan", angles=angles, size=40) for angles in (4, 8, 16)}
scan_networks = {"relu": network("relu"), "siren, ω = 15": network("siren", {"activation.omega": 15.0})}
scan_models = {name: {angles: draw(scan) for angles, scan in scans.items()} for name, draw in scan_networks.items()}
scan_looks = {}
for name, models in scan_models.items():
    apply, params = models[8]
    scan_looks[name] = look(scans[8].observe(apply), params, scans[8].x, scans[8].y)

pictures = {"filtered back projection": {angles: scan.back_projection for angles, scan in scans.items()}}
for name, models in scan_models.items():
    pictures[name] = {}
    for angles, (apply, params) in models.items():
        run = train(scans[angles], (apply, params))
        pictures[name][angles] = scans[angles].reconstruct(lambda c, apply=apply, run=run: apply(run.params, c))
psnr = {
    name: [scans[angles].scores(picture)["psnr"] for angles, picture in found.items()]
    for name, found in pictures.items()
}

# %%
with figure_style():
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
    plot_left(axes[0], scan_looks, "Either kernel has the integrals in few modes (8 angles)")
    for color, marker, (name, values) in zip((MEASURED, *PALETTE), MARKERS, psnr.items()):
        axes[1].plot(list(scans), values, color=color, marker=marker, label=name)
    axes[1].set(xscale="log", xlabel="angles", ylabel="PSNR of the picture [dB]")
    axes[1].set_title("A network wins at four angles, back projection from eight on")
    axes[1].set_xticks(list(scans), [str(angles) for angles in scans])
    axes[1].minorticks_off()
    axes[1].legend()
    plt.show()

# %%
with figure_style():
    figure, axes = plt.subplots(len(pictures), len(scans), figsize=(6.6, 6.8))
    for row, (name, found) in zip(axes, pictures.items()):
        for axis, (angles, picture) in zip(row, found.items()):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[], title=f"{angles} angles: {scans[angles].scores(picture)['psnr']:.0f} dB")
            axis.grid(False)
        row[0].set_ylabel(name)
    plt.show()

# %% [markdown]
# A smooth network fills in what few angles leave open, without the streaks of back projection. With more angles the
# classical method is better than a network of this size after 200 steps.

# %% [markdown]
# ## What to remember
#
# - `task.observe(apply)` is what is measured of a network; take the kernel of that.
# - A low cv says that all modes train at a similar speed, not that they are the right ones: look at how few modes have
#   the signal.
# - Fitting what was measured is easy; what comes out between is decided by the frequencies. `ni.tune` chooses them.
