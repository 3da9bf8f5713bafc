"""tests/support/count_results.py: the count that ends every test run must not flatter."""

import subprocess
import sys

import pytest

GTEST_MIXED = """[==========] Running 3 tests from 1 test suite.
[ RUN      ] Io.Reads
[       OK ] Io.Reads (0 ms)
[ RUN      ] Io.Maps
tests/io_test.cpp:9: Skipped
no huge pages here

[  SKIPPED ] Io.Maps (0 ms)
[ RUN      ] Io.Writes
[  FAILED  ] Io.Writes (0 ms)
[==========] 3 tests from 1 test suite ran. (0 ms total)
[  PASSED  ] 1 test.
[  SKIPPED ] 1 test, listed below:
[  SKIPPED ] Io.Maps
[  FAILED  ] 1 test, listed below:
[  FAILED  ] Io.Writes
"""


@pytest.fixture
def count(repo_root, tmp_path):
    def run(**files: str) -> tuple[int, list[str]]:
        paths = []
        for name, text in files.items():
            path = tmp_path / name.replace("_", ".")
            path.write_text(text)
            paths.append(str(path))
        script = str(repo_root / "tests" / "support" / "count_results.py")
        done = subprocess.run([sys.executable, script, *paths], capture_output=True, text=True)
        return done.returncode, done.stdout.splitlines()

    return run


def ctest(*cases: str) -> str:
    return f'<testsuite name="x">{"".join(cases)}</testsuite>'


def case(name: str, inside: str = "", status: str = "run") -> str:
    return f'<testcase name="{name}" classname="{name}" status="{status}">{inside}</testcase>'


def test_gtest_programs_count_with_their_single_tests(count):
    output = f"<failure/><system-out>{GTEST_MIXED}</system-out>"
    code, lines = count(ctest_xml=ctest(case("io_test", output, "fail"), case("tidy")))
    assert (code, lines[-1]) == (1, "2 passed, 1 failed, 1 skipped")
    assert "skipped  io_test Io.Maps: no huge pages here" in lines
    assert "failed  io_test Io.Writes" in lines


@pytest.mark.parametrize("output", ["[  PASSED  ] 4 tests.", "Segmentation fault", ""])
def test_a_program_that_dies_is_a_failure_whatever_it_printed(count, output):
    code, lines = count(ctest_xml=ctest(case("a"), case("b", f"<failure/><system-out>{output}</system-out>", "fail")))
    assert code == 1
    assert " 1 failed," in lines[-1]


def test_colours_of_a_terminal_do_not_hide_the_count(count):
    output = "<system-out>[NON-XML-CHAR-0x1B][0;32m[  PASSED  ] [NON-XML-CHAR-0x1B][m17 tests.</system-out>"
    assert count(ctest_xml=ctest(case("a", output))) == (0, ["17 passed, 0 failed, 0 skipped"])


def test_a_program_ctest_cannot_find_is_no_skip(count):
    lost = case("a", '<skipped message="Unable to find executable"/>', "notrun")
    real = case("b", '<skipped message="SKIP_RETURN_CODE=77"/><system-out>no GPU here\n</system-out>', "notrun")
    code, lines = count(ctest_xml=ctest(lost, real, case("c")))
    assert (code, lines[-1]) == (1, "1 passed, 1 failed, 1 skipped")
    assert "skipped  b: no GPU here" in lines


def test_pytest_results_and_checks_add_up(count):
    pytest_xml = ctest(
        '<testcase classname="test_a" name="one"/>',
        '<testcase classname="test_a" name="two"><skipped message="no torch"/></testcase>',
        '<testcase classname="test_a" name="three"><error/></testcase>',
    )
    code, lines = count(pytest_xml=pytest_xml, checks_tsv="passed\tformat\t\nskipped\tcuda\tno nvcc here\n")
    assert (code, lines[-1]) == (1, "2 passed, 1 failed, 2 skipped")
    assert {"skipped  test_a::two: no torch", "failed  test_a::three", "skipped  cuda: no nvcc here"} <= set(lines)


@pytest.mark.parametrize("files", [{"ctest_xml": ctest()}, {"ctest_xml": ctest(), "checks_tsv": "skipped\ta\tb\n"}])
def test_nothing_that_ran_is_a_failure(count, files):
    code, lines = count(**files)
    assert code == 1
    assert "no test ran" in lines


def test_a_missing_file_is_a_failure(repo_root, tmp_path):
    script = str(repo_root / "tests" / "support" / "count_results.py")
    done = subprocess.run([sys.executable, script, str(tmp_path / "none.xml")], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "0 passed, 1 failed, 0 skipped"
