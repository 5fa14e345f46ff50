import torch

from purerl import nets, random


def test_noisy_multiplies_rows_with_noisy_weights():
    """By the formula (Fortunato et al. 2018, eq. 9 to 11), for rows with noise of their own and with one noise for all."""
    with torch.device("meta"):
        layer = nets.Noisy(3, 2)
    params = nets.init(layer, random.key(0))
    x, noise = random.normal(random.key(1), (4, 3)), random.normal(random.key(2), (4, 5))

    def wanted(row, noise):
        to_in, to_out = (torch.sign(z) * z.abs() ** 0.5 for z in noise.split([3, 2]))
        weight = params["mean.weight"] + params["deviation.weight"] * torch.outer(to_out, to_in)
        return weight @ row + params["mean.bias"] + params["deviation.bias"] * to_out

    own = torch.stack([wanted(row, each) for row, each in zip(x, noise, strict=True)])
    torch.testing.assert_close(nets.apply(layer, params, x, noise), own)
    shared = torch.stack([wanted(row, noise[0]) for row in x])
    torch.testing.assert_close(nets.apply(layer, params, x, noise[:1]), shared)
    torch.testing.assert_close(nets.apply(layer, params, x, 0 * noise), x @ params["mean.weight"].T + params["mean.bias"])
