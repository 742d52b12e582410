import pytest

from api.scripted import Stand


@pytest.fixture
def stand(tmp_path):
    return Stand(tmp_path)
