# Checks licences, bans and sources against deny.toml where cargo-deny is not installed: building it takes longer than
# the tests. Sourced by .ci/check.sh. Every target's dependencies count, as with cargo-deny.

list() { awk -v key="$1" '$0 ~ "^" key " = \\[" { on = 1; next } /^\]/ { on = 0 } on' deny.toml; }

cargo tree --locked --workspace --all-features --target all --edges normal,build,dev --prefix none --no-dedupe \
    --format '{p}|{l}' | sort -u >"$scratch/packages"

list allow | sed -n 's/^ *"\(.*\)".*/\1/p' >"$scratch/allowed"
awk -F'|' '
    # An expression of the SPDX kind: each known licence becomes 1, every other 0, then it is reduced.
    function holds(text,    words, count, i, out) {
        gsub("/", " OR ", text); gsub(/\(/, " ( ", text); gsub(/\)/, " ) ", text); gsub(/ WITH /, "+WITH+", text)
        count = split(text, words, " ")
        for (i = 1; i <= count; i++)
            out = out (words[i] == "AND" ? "&" : words[i] == "OR" ? "|" : words[i] ~ /^[()]$/ ? words[i] : words[i] in allowed ? 1 : 0)
        while (out !~ /^[01]$/) {
            before = out
            gsub(/\(1\)/, "1", out); gsub(/\(0\)/, "0", out)
            gsub(/1&1/, "1", out); gsub(/0&[01]|1&0/, "0", out)
            if (out == before) { gsub(/0\|0/, "0", out); sub(/1\|[01]|0\|1/, "1", out) }
            if (out == before) return 0
        }
        return out
    }
    FNR == NR { gsub(/ WITH /, "+WITH+"); allowed[$0] = 1; next }
    !holds($2) { print "licence of " $1 ": " ($2 == "" ? "none" : $2); bad = 1 }
    END { exit bad }
' "$scratch/allowed" "$scratch/packages" || fail "a licence that deny.toml does not allow"

list deny | sed -n 's/.*crate = "\([^"]*\)".*/\1/p' | while read -r banned; do
    if grep -q "^$banned v" "$scratch/packages"; then fail "$banned is banned in deny.toml"; fi
done

strays=$(sed -n 's/^source = //p' Cargo.lock | grep -v -x '"registry+https://github.com/rust-lang/crates.io-index"' | sort -u || :)
[ -z "$strays" ] || fail "packages from $strays"

say "$(wc -l <"$scratch/packages" | tr -d ' ') packages: licences, bans and sources ok (without cargo-deny)"
