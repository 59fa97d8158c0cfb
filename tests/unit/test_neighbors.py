"""What searches found -> nearest rows, Datalab's edges and the numbers of a view: the pure functions."""

HEAD

@given(
    kind=st.sampled_from(["uniform", "duplicated"]),
    seed=st.integers(0, 2**32 - 1),
    some=st.lists(st.booleans(), min_size=30, max_size=30),
)
@settings(max_examples=40, deadline=None)
def test_nearest_rows_of_a_shard_are_those_of_the_whole(kind: str, seed: int, some: list[bool]) -> None:
    sets = dict(zip(("real", "fake"), sets_of(kind, seed, 18, 12), strict=True))
    x, rows, copies = numbered(sets)
    distinct = [own[copies.are_distinct(own)] for own in rows.values()]
    found = found_by_brute_force(x, *distinct, 5)
    whole = nearest_rows(found, copies, rows["real"], rows["fake"])
    assert whole.row.tolist() == list(range(30))
    chosen = np.flatnonzero(some)
    part = nearest_rows(found, copies, chosen[chosen < 18], chosen[chosen >= 18])
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(getattr(part, name), values[chosen], err_msg=name)
    searched = analyse(x, rows, copies, EXACT).nearest["fake"]
    for name in ("nn_distance", "nearest_real_distance", "knn_radius"):
        np.testing.assert_allclose(getattr(searched, name), getattr(whole, name), atol=1e-15)


def test_rows_are_exact_where_both_their_searches_are() -> None:
    x = normal(50, 30)
    real, own = np.arange(20), np.arange(20, 30)
    found = found_by_brute_force(x, real, own, 5)
    parts = dict(vars(found.searches))
    none = Copies(np.empty(0, np.int64), np.empty(0, np.int64))
    for name, real_is, own_is in (
        ("real_real", False, True),
        ("real_own", False, True),
        ("own_real", True, False),
        ("own_own", True, False),
    ):
        whole = parts[name]
        probed = Relation(whole.row, whole.distance, whole.neighbor, Recall(0.99, 0.96, 100, 8))
        searches = Searches(**{**parts, name: probed})
        exact = nearest_rows(Found(searches, found.real_inside, found.own_inside), none, real, own).exact
        assert (exact[:20] == real_is).all()
        assert (exact[20:] == own_is).all()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 4), (6, 5), (40, 30)])
@pytest.mark.parametrize("codes", [(0, 1), (0, 3)])
def test_listed_edges_are_those_of_the_ten_nearest_of_either_end(n: int, m: int, codes: tuple[int, int]) -> None:
    real, fake = sets_of("clustered", n, n, m)
    x = np.vstack([real, fake])
    distances, rows = brute.nearest_lists(x, min(10, n + m - 1))
    radius = float(np.quantile(brute.among(x)[np.isfinite(brute.among(x))], 0.3)) * (1 + 1e-9)
    wanted = {
        (min(i, int(j)), max(i, int(j)))
        for i in range(n + m)
        for j, d in zip(rows[i], distances[i], strict=True)
        if d < radius
    }
    found = found_by_brute_force(x, np.arange(n), np.arange(n, n + m), DATALAB_K)
    edges = listed_edges(found.searches, radius, codes)
    assert pairs_of(edges) == wanted
    np.testing.assert_array_equal(edges.left_code, np.where(edges.left < n, *codes))
    np.testing.assert_array_equal(edges.right_code, np.where(edges.right < n, *codes))
    if n == 40:
        assert len(wanted) < len(brute.edges(x, radius))


def test_a_listed_pair_at_exactly_the_radius_is_no_edge() -> None:
    axes = np.eye(4, dtype=np.float32)
    found = found_by_brute_force(axes, np.arange(2), np.arange(2, 4), DATALAB_K)
    assert len(listed_edges(found.searches, 1.0, (0, 1))) == 0
    assert len(listed_edges(found.searches, float(np.nextafter(1.0, 2)), (0, 1))) == 6


# Beside cleanlab's Datalab.
