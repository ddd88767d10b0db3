"""Evaluate a trained run: metrics of its samples, its reconstructions, likelihoods, and classifiers.

  python launch.py evaluate --workdir=runs/digits --metrics=fd_effnet_lite0,kd_effnet_lite0 --num=5000
  python launch.py evaluate --workdir=runs/cifar10 --metrics=fid,sfid,is,kid --inception=FILE --num=50000 --steps=50
  python launch.py evaluate --workdir=runs/digits --metrics=nll [--num=1000 --terms=100 --ode_steps=100]
  python launch.py evaluate --workdir=runs/digits --metrics=reconstruction --steps=10,20,50,100,200,500,1000
  python launch.py evaluate --workdir=runs/digits --metrics=inpainting,interpolation [--masks=half --strength=0.5]
  python launch.py evaluate --workdir=runs/classifier --metrics=accuracy

Metrics of samples, against the real images of --reference. The sampling settings are those of the config and the flags:
  fid, kid, is, sfid, precision_recall_inception   features of FID's Inception; requires --inception
  fd_dinov2, kd_dinov2, precision_recall_dinov2    features of DINOv2; requires --dinov2; FD-DINOv2 with --num=50000
  fd_effnet_lite0, kd_..., precision_recall_...    features of EfficientNet-Lite0, without downloads; this is not FID
  fd_pixels, kd_pixels, precision_recall_pixels    pixels averaged to 8x8, for tiny images
  fd_classifier, kd_..., precision_recall_...      features of the classifier of a run; requires --features
  classifier_accuracy, cas                 fraction of samples that a classifier of real images assigns to their class;
                                           and of real images, by a classifier of samples (support vector machines)
  clip_score, r_precision, cmmd            with --clip: 100 times the cosine of image and caption; fraction of images
                                           nearer to their caption than to 99 others; distance to the real images
  caption_accuracy                         fraction of images of shapes that show their caption, by shape detection
precision_recall_* are precision, recall, density and coverage. Fréchet distances decrease with --num, so their
extrapolation to infinitely many samples is reported too. The prefix recon_ (recon_fd_effnet_lite0) compares an
autoencoder's reconstructions of --split with the originals.

nll, in bits per dimension of --split. For diffusion models: the variational bound over --steps (default: all), with
L_T, the sum of the KL terms, L_0, and the terms by t; the likelihood by the probability-flow ODE with Hutchinson's
trace estimator, and with the exact trace for the first --exact_trace images (one directional derivative per value).
--decoder=ddpm computes L_0 as the code of DDPM, Improved DDPM and ADM, for comparison with published values.
--terms=K samples K terms of the bound per batch, most of them at low noise levels, and weights them. Conditional models
are conditioned on the labels. For VAEs: the ELBO, its terms, and the importance-weighted bound of --samples samples.
For VQ-VAEs: with a uniform distribution of tokens. For priors: of the tokens.

reconstruction: mean squared error per value, for images in [0, 1]. Diffusion models encode and decode by DDIM, with the
same number of steps (Song et al. 2021, table 2). For autoencoders also PSNR, SSIM, the usage of the codebook, and LPIPS
with --lpips.

progressive_coding, of diffusion models: rate and distortion of the estimate of the image while x_T, ..., x_0 are sent
over --steps (default: all).

straightness, of diffusion models: how far DDIM's trajectories in --steps (default 100, or T) are from straight lines at
constant speed, relative to the squared distance of their ends (Liu et al. 2023); without guidance.

inpainting, of diffusion models: images of --split inpainted in random masks of the kind --masks, under their own labels
or captions and with the sampling settings of the config and the flags. Mean absolute difference of neighbouring pixels
across the border of the mask, in grey levels, and how much it exceeds that of the real images; mean squared error of
the region; fd_pixels; for shapes the caption accuracy. --resample_steps=K takes each step K times (RePaint).

interpolation, of diffusion models without captions: pairs of images of --split are noised to each t / T in --strength,
mixed and sampled from there, as in DDPM (Ho et al. 2020, section 4.4). Error of the ends, which are reconstructions;
diversity of the samples half way; their fd_pixels.

retrieval, zero_shot, composition, for CLIPs: recall@1, 5 and 10 among --num images and captions of --split; accuracy of
the most similar class name, in the sentence of --template; fraction of images of shapes nearer to their caption than to
all captions with a wrong colour, shape, size, order of two objects, or binding (attributes of two objects exchanged).

accuracy, for classifiers of noised images: at nine timesteps.

Values have standard errors. Appends an entry per metric of data, and one for all metrics of samples, to the store
results/results.jsonl, with everything that the values depend on; writes example images. Entries in the store with the
same inputs and code are printed and not computed again.
"""

import sys

from absl import flags as absl_flags

from diffjax import evaluation
from diffjax.cli.flags import MAX_COUNT, Arguments, Flags, define_sampling, define_workdir, required
from diffjax.cli.results import (
    check_output,
    define_clip,
    define_csv,
    define_feature_networks,
    define_recompute,
    define_reference,
    report_unwritten,
    weight_paths,
    write_table,
)
from diffjax.cli.settings import define_settings, load_run, note_batch_size
from diffjax.evaluation import evaluations, metrics
from diffjax.evaluation.evaluations import References
from diffjax.evaluation.results_store import ResultsStore, flat_row
from diffjax.models.diffusion.inpainting_masks import KINDS
from diffjax.parsing import texts


def define(flags: Flags) -> None:
    define_workdir(flags, url=True)
    define_sampling(flags)
    define_settings(flags)
    define_recompute(flags, "metrics")
    define_csv(flags)
    define_clip(flags)
    define_feature_networks(flags)
    define_reference(flags)
    for name, default, text in (
        ("metrics", None, f"{' | '.join(evaluation.NAMES)}; several, separated by commas"),
        ("split", None, "split, for metrics of data (default: test, or the rest of the slice in data.split)"),
        ("decoder", "exact", "L_0 of a diffusion model's bound: exact | ddpm (as in DDPM's code)"),
        ("template", "a {}", "sentence with {} for the class name, for zero_shot"),
        ("lpips", None, "weights files of LPIPS, BACKBONE,LINEAR"),
        ("masks", "rectangle", f"kind of the masks of inpainting: {' | '.join(KINDS)}"),
        ("strength", None, "fractions t / T of interpolation (default: the config's, or 0.125,0.25,0.5,0.75,1)"),
    ):
        absl_flags.DEFINE_string(name, default, text, flag_values=flags)
    for name, default, low, text in (
        ("num", None, 2, "number of images, the first of the split (default 256), or of samples (default 1000)"),
        ("ode_steps", 100, 0, "number of steps of the ODE solver, 0: bound only"),
        ("samples", 64, 1, "number of samples of a VAE's importance-weighted bound"),
        ("resample_steps", None, 1, "number of times that each step of inpainting is taken"),
        ("terms", 0, 0, "number of terms of the bound per batch, 0: all"),
        ("exact_trace", None, 0, "number of images with an exact trace (default: 8 if they have at most 256 values)"),
    ):
        absl_flags.DEFINE_integer(name, default, text, low, MAX_COUNT, flag_values=flags)


def run(arguments: Arguments) -> int:
    names = texts(required(arguments, "metrics"))
    references = References(arguments.reference, arguments.clip, weight_paths(arguments))
    evaluations.check_names(names, references)
    trained = load_run(required(arguments, "workdir"), arguments, arguments.ema_length)
    settings = evaluations.make_settings(arguments.as_dict())
    results = ResultsStore(trained.workdir.results)
    check_output(arguments, results)
    prepared = evaluations.prepare(names, trained, settings, arguments.as_dict(), references)
    if set(names) & set(metrics.NAMES):
        note_batch_size(arguments, settings.count(evaluations.DEFAULT_SAMPLES))
    entries = []
    for entry, is_stored in evaluations.compute(prepared, results, recompute=arguments.recompute):
        entries.append(entry)
        for text in entry["warnings"]:
            print(f"warning: {text}", file=sys.stderr)
        print(entry["text"])
        if is_stored:
            print(f"  from {results.path}, {entry['date']}; --recompute computes it again")
        for path in map(results.file, entry["files"]):
            if path not in results.failed:
                print(path)
    write_table(arguments, list(map(flat_row, entries)))
    code = report_unwritten(results)
    if not code:
        print(results.path)
    return code
