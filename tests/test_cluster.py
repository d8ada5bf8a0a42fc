"""What raymask sets for Ray before it begins."""

from __future__ import annotations

import inspect
import os

import pytest
from ray.data._internal.cluster_autoscaler import default_cluster_autoscaler_v2


@pytest.mark.usefixtures("ray_session")
def test_the_share_of_a_killed_driver_is_soon_free() -> None:
    name = "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S"
    assert os.environ[name] == "30"
    assert name in inspect.getsource(default_cluster_autoscaler_v2)  # read when Ray Data first runs
