"""ReSSL against the paper's equation, in NumPy."""

import numpy as np
import pytest
import torch

from cgh_models.backbone import create
from cgh_models.methods.ressl import ReSSL


def test_the_loss_is_the_equation():
    torch.manual_seed(0)
    config = ReSSL.Config(projection_width=8, hidden_width=16, queue_length=40)
    method = ReSSL(create("resnet18_cifar_w16"), config)
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(0.05 * torch.randn_like(p))
    weak, strong = torch.randn(2, 6, 3, 32, 32)
    s, t = (
        f(x, 1).detach().double().numpy()
        for f, x in ((method.student.normalized, strong), (method.teacher.normalized, weak))
    )
    q = method.queue.rows[0].double().numpy()
    np.testing.assert_allclose(np.linalg.norm(s, axis=1), 1, rtol=1e-6)

    p = np.exp(t @ q.T / 0.04)
    p /= p.sum(1, keepdims=True)
    log_q = s @ q.T / 0.1 - np.log(np.exp(s @ q.T / 0.1).sum(1, keepdims=True))
    expected = -(p * log_q).sum(1).mean()
    assert method([weak, strong], 0.3)["loss"].item() == pytest.approx(expected, rel=1e-5)
