"""Files that are written whole or not at all."""

import concurrent.futures

from etils import epath

from var_jax.io.atomic import write


def test_write_by_several_writers_leaves_one_text_whole(tmp_path):
    """Eight threads write 200 times: no write fails, no text is mixed, and no temporary file
    stays."""
    path = epath.Path(tmp_path / "status.json")
    texts = [str(i) * 20_000 for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert (
            len(list(pool.map(lambda i: write(path, texts[i % 8]), range(200)))) == 200
        )  # none fails
    assert path.read_text() in texts
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]
