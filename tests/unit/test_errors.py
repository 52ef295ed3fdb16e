from cosmos_coherence import errors


def test_every_error_is_in_the_catalogue_once():
    def below(kind):
        return [kind, *(k for child in kind.__subclasses__() for k in below(child))]

    public = {kind for kind in below(errors.CosmosError) if not kind.__name__.startswith("_")}
    assert public == set(errors.CATALOGUE)
    codes = [kind.code for kind in errors.CATALOGUE]
    assert len(codes) == len(set(codes))


def test_exit_statuses_are_those_of_the_manual():
    assert {kind.exit_status for kind in errors.CATALOGUE} <= {1, 2, 4, 5, 6, 7, 130}
    assert all(kind.default_remedy.endswith((".", "")) for kind in errors.CATALOGUE)
