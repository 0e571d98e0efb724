# `./dev check`: what a machine can keep an eye on beyond the tests. Sourced by ./dev.

CARGO_DENY=0.20.2

step() { printf '\n== %s\n' "$*"; }
need_scratch
cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || rustup component add rustfmt clippy

step "format"
cargo fmt --all --check
cargo fmt --manifest-path benches/peers/Cargo.toml --check

step "lints"
cargo clippy --workspace --all-targets --all-features -- -D warnings

step "docs"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features

step "the star: crates depend on saas-core and on no sibling"
for crate in $CRATES; do
    cargo tree --locked --package "$crate" --all-features --edges normal,build,dev --prefix none --format '{p}' >"$scratch/tree"
    strays=$(sed -n 's/^\(saas-[a-z-]*\) .*/\1/p' "$scratch/tree" | sort -u | grep -v -x -e saas-core -e "$crate" || :)
    [ -z "$strays" ] || fail "$crate reaches $strays"
    say "$crate: ok"
done

step "each feature alone, and none"
for crate in $CRATES; do
    features=$(awk '/^\[/ { inside = $0 == "[features]" } inside && /^[a-z].* = / && $1 != "default" { print $1 }' "$crate/Cargo.toml")
    cargo clippy --quiet --package "$crate" --no-default-features -- -D warnings
    for feature in $features; do
        cargo clippy --quiet --package "$crate" --no-default-features --features "$feature" -- -D warnings
    done
    say "$crate: none" $features
done

step "nobody turns on a feature of sqlx that would retype an adopter's macros"
cargo tree --locked --workspace --all-features --edges features --prefix none >"$scratch/tree"
strays=$(grep -E '^sqlx[a-z-]* feature "(time|bigdecimal)"' "$scratch/tree" | sort -u || :)
[ -z "$strays" ] || fail "$strays"

step "formatted SQL only where it is argued for"
# placement/ground/database.rs: CREATE and DROP DATABASE take no parameters, and no function may run them.
# testing/session.rs: attacks are made of names that the catalogue quotes.
# relocate/clear.rs: DROP DATABASE again.
strays=$(git grep -n AssertSqlSafe -- 'saas-*/src' ':!saas-core/src/db' ':!saas-core/src/testing' \
    ':!saas-tenancy/src/placement/ground/database.rs' ':!saas-tenancy/src/testing/session.rs' \
    ':!saas-tenancy/src/relocate/clear.rs' || :)
[ -z "$strays" ] || fail "$strays"

step "licences, bans and sources"
target=$(target_directory)
PATH=$target/tools/bin:$PATH
if ! have cargo-deny; then
    say "installing cargo-deny into $target/tools, once; this takes some minutes"
    cargo install --quiet --locked --version "$CARGO_DENY" --root "$target/tools" --target-dir "$target/tools/build" cargo-deny
    rm -rf "$target/tools/build"
fi
cargo deny --all-features check licenses bans sources

step "no path of this machine in a tracked file"
# A checkout directly below the root, such as /app, is too common a word to look for.
here=$(pwd)
case $here in /*/*) set -- -e "$here/" ;; *) set -- ;; esac
code=0
strays=$(git grep -n -I -E -e '/(home|Users)/[a-z]' -e '/root/' "$@" -- . ':!.ci/check.sh') || code=$?
# 1: nothing found; anything above: git itself failed.
[ $code = 1 ] || fail "${strays:-git grep failed}"

printf '\nall checks passed\n'
