from base.seeding import derive


def test_derived_seeds_stay_what_they_were():
    """They decide what was collected and trained; a change would silently change every result."""
    assert derive(0) == 1223360973
    assert derive(0, "collect", 3) == 1915474296


def test_derived_seeds_differ_by_every_argument():
    seeds = [derive(0), derive(1), derive(0, "a"), derive(0, "a", "b"), derive(0, "ab")]
    seeds += [derive(0, "1"), derive(0, 1), derive(0, *range(3))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= derive(7, i) < 2**31 for i in range(1000))
