# `./dev check`: what a machine can keep an eye on beyond the tests. Sourced by ./dev.

step() { printf '\n== %s\n' "$*"; }
need_scratch

step "format"
cargo fmt --all --check

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
    cargo check --quiet --package "$crate" --no-default-features
    for feature in $features; do
        cargo check --quiet --package "$crate" --no-default-features --features "$feature"
    done
    say "$crate: none" $features
done

step "nobody turns on a feature of sqlx that would retype an adopter's macros"
cargo tree --locked --workspace --all-features --edges features --prefix none >"$scratch/tree"
strays=$(grep -E '^sqlx[a-z-]* feature "(time|bigdecimal)"' "$scratch/tree" | sort -u || :)
[ -z "$strays" ] || fail "$strays"

step "licences, bans and sources"
if have cargo-deny; then
    cargo deny --all-features check licenses bans sources
else
    . .ci/deny.sh
fi

step "no path of this machine in a tracked file"
# A checkout directly below the root, such as /app, is too common a word to look for.
here=$(pwd)
case $here in /*/*) set -- -e "$here/" ;; *) set -- ;; esac
strays=$(git grep -n -I -E -e '/(home|Users)/[a-z]' -e '/root/' "$@" -- . ':!.ci/check.sh' || :)
[ -z "$strays" ] || fail "$strays"

printf '\nall checks passed\n'
