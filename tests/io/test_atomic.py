import concurrent.futures

from etils import epath

from var_jax.io.atomic import write


def test_writers_of_one_file_leave_one_of_their_texts_whole(tmp_path):
    path = epath.Path(tmp_path / "status.json")
    texts = [str(i) * 20_000 for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert (
            len(list(pool.map(lambda i: write(path, texts[i % 8]), range(200)))) == 200
        )  # none fails
    assert path.read_text() in texts
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]
