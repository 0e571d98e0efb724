# Counts the results of `cargo test` by kind. The last line is the whole run's.
/^ *Running unittests / { kind = "unit" }
/^ *Running tests\// { kind = "integration" }
/^ *Doc-tests / { kind = "doc" }
/^test result: / {
    for (i = 1; i < NF; i++) {
        if ($(i + 1) == "passed;") passed[kind] += $i
        if ($(i + 1) == "failed;") failed[kind] += $i
        if ($(i + 1) == "ignored;") ignored += $i
    }
}
END {
    split("unit integration doc", kinds, " ")
    print ""
    for (i = 1; i <= 3; i++) {
        printf "%-12s %4d passed, %d failed\n", kinds[i], passed[kinds[i]], failed[kinds[i]]
        all_passed += passed[kinds[i]]
        all_failed += failed[kinds[i]]
    }
    if (ignored) printf "%d ignored\n", ignored
    printf "%d passed, %d failed\n", all_passed, all_failed
}
