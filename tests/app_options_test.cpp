#include "app/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "app/ini.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

struct Values {
  std::string path = "none";
  int64_t k = 32;
  double lr = 0.5;
  bool center = false;
  std::string place = "here";
};

OptionSet option_set(Values& v) {
  return {.command = "demo",
          .summary = "A command.",
          .fields = {{"data.path", &v.path, "", "where"},
                     {"data.center", &v.center, "", "subtract the mean"},
                     {"model.k", &v.k, "latents", "active", between(1, 100)},
                     {"optim.lr", &v.lr, "", "rate", above(0)}},
          .positional = {{"PLACE", &v.place, "", "a folder"}},
          .config_file = true};
}

class Options : public ::testing::Test {
 protected:
  Options() {
    folder_ = std::filesystem::path(::testing::TempDir()) /
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
  }
  ~Options() override { std::filesystem::remove_all(folder_); }

  std::string file(const std::string& text) {
    const std::string path = folder_ / "a.ini";
    std::ofstream(path) << text;
    return path;
  }
  Sources read(const std::vector<std::string>& args) { return read_options(option_set(v), args); }
  Error refused(const std::vector<std::string>& args) {
    return test::error_of([&] { read(args); });
  }

  Values v;
  std::filesystem::path folder_;
};

TEST_F(Options, TakesBothForms) {
  const Sources sources = read({"--model.k", "5", "--optim.lr=1e-3", "--data.path=a=b", "there"});
  EXPECT_EQ(v.k, 5);
  EXPECT_EQ(v.lr, 1e-3);
  EXPECT_EQ(v.path, "a=b");
  EXPECT_EQ(v.place, "there");
  EXPECT_THAT(sources, UnorderedElementsAre(
                           Pair("model.k", "command line"), Pair("optim.lr", "command line"),
                           Pair("data.path", "command line"), Pair("PLACE", "command line")));
}

TEST_F(Options, TakesNegativeNumbersAsValues) {
  EXPECT_THAT(refused({"--model.k", "-5"}).line(), HasSubstr("model.k = '-5'"));
}

TEST_F(Options, CommandLineWinsOverTheFile) {
  const std::string path = file("# comment\n[model]\nk = 7 ; another\n\n[optim]\nlr=0.25\n");
  const Sources sources = read({"--config", path, "--model.k=9"});
  EXPECT_EQ(v.k, 9);
  EXPECT_EQ(v.lr, 0.25);
  EXPECT_EQ(sources.at("model.k"), "command line");
  EXPECT_EQ(sources.at("optim.lr"), path + ":6");
}

TEST_F(Options, ChecksValuesOfTheFileThatLose) {
  const std::string path = file("[model]\nk = 0\n");
  EXPECT_THAT(refused({"--config", path, "--model.k=9"}).line(), HasSubstr("a.ini:2"));
}

struct BadLine {
  std::vector<std::string> args;
  const char* part_of_line;
};

TEST_F(Options, RefusesBadCommandLines) {
  for (const BadLine& bad : std::vector<BadLine>{
           {{"--model.kk", "5"}, "unknown flag '--model.kk'. hint: did you mean --model.k?"},
           {{"--k", "5"}, "did you mean --model.k?"},
           {{"--model", "5"}, "unknown flag '--model'"},  // no guessing of prefixes
           {{"--Model.k", "5"}, "unknown flag '--Model.k'. hint: did you mean --model.k?"},
           {{"--utterly", "5"}, "unknown flag '--utterly'. hint: megadict demo --help"},
           {{"--model.k"}, "needs a value"},
           {{"--model.k="}, "needs a value"},
           {{"--model.k", ""}, "needs a value"},
           {{"--model.k", "--optim.lr", "3"}, "needs a value"},
           {{"--data.center"}, "needs a value"},
           {{"--model.k", "5", "--model.k", "5"}, "--model.k is given twice"},
           {{"--model.k=5", "--model.k=6"}, "--model.k is given twice"},
           {{"one", "two"}, "unexpected argument 'two'"},
           {{"one", "-x"}, "unexpected argument '-x'"},
           {{"one", "--", "two"}, "unexpected argument"},
           {{"--config", "nowhere.ini"}, "cannot read config file 'nowhere.ini': No such file"},
           {{"--config", "/"}, "cannot read config file '/'"},
           {{"--config"}, "needs a value"},
       }) {
    const Error refusal = refused(bad.args);
    EXPECT_EQ(refusal.code(), ExitCode::usage) << bad.args.front();
    EXPECT_TRUE(refusal.agreed());
    EXPECT_THAT(refusal.line(), HasSubstr(bad.part_of_line));
  }
}

TEST_F(Options, RefusesBadFiles) {
  for (const auto& [text, part] : std::vector<std::pair<std::string, std::string>>{
           {"[model]\nkk = 5\n", "a.ini:2: unknown name 'model.kk'. hint: did you mean model.k?"},
           {"[model]\nk 5\n", "a.ini:2: 'k 5' is neither [section] nor name = value"},
           {"[model]\n= 5\n", "a.ini:2"},
           {"[model\nk = 5\n", "a.ini:1: section '[model' has no closing ]"},
           {"[model]\nk =\n", "a.ini:2): no value"},
           {"[model]\nk = 5\nk = 6\n", "a.ini:3: 'model.k' was already set in line 2"},
           {"[model]\nk = 5\n[model]\nk = 6\n", "a.ini:4: 'model.k' was already set in line 2"},
           {"[model]\nmodel.k = 5\n", "unknown name 'model.model.k'"},
           {"k = 5\n", "unknown name 'k'. hint: did you mean model.k?"},
           {"[model]\nk = 5.5\n", "not an integer"},
           {std::string("\x7f") + "ELF" + std::string(2, '\0'),
            "is neither [section] nor name = value"},
       }) {
    const Error refusal = refused({"--config", file(text)});
    EXPECT_EQ(refusal.code(), ExitCode::usage) << text;
    EXPECT_THAT(refusal.line(), HasSubstr(part));
    EXPECT_EQ(refusal.line().find('\n'), std::string::npos);
  }
}

TEST_F(Options, FilesMayComeFromOtherSystems) {
  read({"--config", file("[model]\r\nk = 5\r\n[data]\r\npath = a#b  # comment\r\n")});
  EXPECT_EQ(v.k, 5);
  EXPECT_EQ(v.path, "a#b");
}

TEST_F(Options, NamesWhatIsNeeded) {
  OptionSet set = option_set(v);
  set.required = {"data.path", "PLACE"};
  EXPECT_EQ(test::error_of([&] { read_options(set, {"x"}); }).line(),
            "--data.path is needed and was not given. hint: megadict demo --help");
  EXPECT_EQ(test::error_of([&] { read_options(set, {"--data.path=x"}); }).line(),
            "PLACE is needed and was not given. hint: megadict demo --help");
}

TEST_F(Options, HelpListsEveryField) {
  const OptionSet set = option_set(v);
  const std::string text = help_text(set);
  for (const Field& field : set.fields) {
    EXPECT_THAT(text, HasSubstr("--" + field.name));
    EXPECT_THAT(text, HasSubstr(field.help));
  }
  EXPECT_THAT(text, HasSubstr("[latents; 1 to 100]"));
  EXPECT_TRUE(wants_help({"a", "-h"}));
  EXPECT_FALSE(wants_help({"a", "help"}));
}

TEST_F(Options, IniKeepsLinesInOrder) {
  const auto entries = read_ini(file("top = 1\n[a]\n; note\nx = 1 2\n\n[b]\ny=\n"));
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[0].name, "top");
  EXPECT_EQ(entries[1].name, "a.x");
  EXPECT_EQ(entries[1].value, "1 2");
  EXPECT_EQ(entries[1].line, 4);
  EXPECT_EQ(entries[2].name, "b.y");
  EXPECT_EQ(entries[2].value, "");
}

}  // namespace
}  // namespace megadict
