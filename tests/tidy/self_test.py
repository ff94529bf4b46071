#!/usr/bin/env python3
"""The checks find what they are for, and nothing in what is right."""

import unittest

import cxx_source
import layers
import tidy


def problems(path, text, ratchet=None):
    return [problem for _, problem in tidy.check_cxx(path, text, ratchet if ratchet is not None else {})]


def long_function(lines):
    return 'int f() {\n' + '  g();\n' * lines + '}\n'


class Banned(unittest.TestCase):
    CASES = [
        ('base/a.cpp', 'assert(x);', 'GW_ASSERT'),
        ('base/a.cpp', '#include <cassert>', 'GW_ASSERT'),
        ('base/a.cpp', '#if 0\n#endif', 'dead code'),
        ('dataplane/daemon/a.cpp', 'std::printf("x");', 'spdlog'),
        ('qemu-bridge/agent/a.cpp', 'std::cerr << 1;', 'spdlog'),
        ('tests/unit/base/a.cpp', 'usleep(10);', 'wait for the event'),
        ('tests/simulation/a.cpp', 'std::this_thread::sleep_for(x);', 'wait for the event'),
        ('dataplane/wire/a.cpp', 'std::shared_ptr<int> p;', 'one owner'),
        ('dataplane/transport/a.cpp', 'std::function<void()> f;', 'template'),
        ('dataplane/transfer/a.cpp', 'std::chrono::steady_clock::now();', 'time is an argument'),
        ('dataplane/transfer/a.cpp', 'throw 1;', 'errors are values'),
        ('dataplane/daemon/a.cpp', 'rte_eal_init(0, 0);', 'dataplane/port'),
        ('dataplane/daemon/a.cpp', '#include <rte_eal.h>', 'dataplane/port'),
        ('base/a.cpp', '// TO' + 'DO: later', 'owner'),
        ('base/a.h', 'int f();', '#pragma once'),
        ('tests/unit/base/a.cpp', 'usleep(10);  // tidy-allow(sleep):', 'wait for the event'),
        ('tests/unit/base/a.cpp', 'usleep(10);  // tidy-allow(throw): pace', 'wait for the event'),
    ]
    CLEAN = [
        ('base/a.cpp', 'static_assert(x); GW_ASSERT(x); t.assert(x);'),
        ('base/a.cpp', '// assert(x)\n/* throw rte_x */ const char* s = "assert(x)";'),
        ('base/a.cpp', 'auto s = R"(assert(x); throw)";'),
        ('controlplane/ctl/a.cpp', 'std::printf("x");'),
        ('dataplane/daemon/main.cpp', 'std::printf("x");'),
        ('tests/integration/a.cpp', 'usleep(10);'),
        ('tests/unit/base/a.cpp', 'usleep(10);  // tidy-allow(sleep): the pace of a writer'),
        ('dataplane/pages/a.cpp', 'throw std::bad_alloc();'),
        ('dataplane/pages/executor.h', '#pragma once\nstd::function<void()> f;'),
        ('dataplane/port/a.cpp', '#include <rte_eal.h>\nrte_eal_init(0, 0);'),
        ('base/a.cpp', '// TO' + 'DO(alice): later'),
        ('base/a.cpp', 'int n = 1\'000\'000; char c = \'"\'; // x'),
    ]

    def test_found(self):
        for path, text, part in self.CASES:
            with self.subTest(text=text):
                self.assertTrue(any(part in problem for problem in problems(path, text)), problems(path, text))

    def test_clean(self):
        for path, text in self.CLEAN:
            with self.subTest(text=text):
                self.assertEqual(problems(path, text), [])

    def test_paths_of_machines(self):
        self.assertEqual(len(list(tidy.check_text('a.md', 'see /wo' + 'rk/x and /ho' + 'me/bob'))), 2)
        self.assertEqual(len(list(tidy.check_text('a.cpp', 'int x; \n'))), 1)
        self.assertEqual(list(tidy.check_text('a.md', 'ProtectHome, /usr/bin, rework/x\n')), [])


class Layers(unittest.TestCase):
    def test_arrows(self):
        for path, included, good in [
            ('dataplane/transfer/a.cpp', 'dataplane/transport/lane.h', True),
            ('dataplane/transport/a.cpp', 'dataplane/transfer/guest.h', False),
            ('dataplane/transfer/a.cpp', 'dataplane/memory/x.h', False),
            ('dataplane/memory/a.cpp', 'dataplane/wire/x.h', False),
            ('qemu-bridge/agent/a.cpp', 'dataplane/api/dataplane.pb.h', True),
            ('qemu-bridge/agent/a.cpp', 'dataplane.pb.h', True),
            ('qemu-bridge/agent/a.cpp', 'dataplane/pages/page.h', False),
            ('base/a.cpp', 'config/common.h', False),
            ('kmod-ept/a.c', 'b.h', True),
            ('kmod-ept/a.c', 'base/b.h', False),
            ('qemu-bridge/attach/a.cpp', 'kmod-ept/b.h', True),
            ('qemu-bridge/agent/a.cpp', 'kmod-ept/b.h', False),
            ('controlplane/ctl/a.cpp', 'controlplane/store/store.h', False),
            ('base/a.cpp', 'uuid.h', False),
            ('base/a.cpp', 'tests/unit/base/x.h', False),
            ('tests/unit/base/a.cpp', 'dataplane/daemon/x.h', True),
        ]:
            with self.subTest(path=path, included=included):
                self.assertEqual(layers.check_include(path, included) is None, good)

    def test_order(self):
        good = ''.join(f"subdir('{folder}')\n" for folder in layers.ALLOWED)
        self.assertEqual(layers.check_order(good), [])
        self.assertTrue(layers.check_order("subdir('config')\n" + good.replace("subdir('config')\n", '')))
        self.assertTrue(layers.check_order(good + "subdir('extra')\n"))
        self.assertTrue(layers.check_order(good.replace("subdir('base')\n", '')))


class Lengths(unittest.TestCase):
    def test_functions(self):
        text = ('namespace a {\nclass B {\n  void f() const {\n    if (x) {\n      y();\n    }\n  }\n};\n'
                'int g(int x)\n{\n  return [&] {\n    return 1;\n  }();\n}\n}\nint t[] = {\n1,\n2};\nTEST(S, N) {\n  x();\n}\n')
        self.assertEqual([(name, lines) for _, name, lines in cxx_source.functions(text)],
                         [('f', 3), ('g', 3), ('TEST(S, N)', 1)])

    def test_limits_and_ratchet(self):
        self.assertEqual(problems('base/a.cpp', long_function(70)), [])
        self.assertEqual(len(problems('base/a.cpp', long_function(71))), 1)
        self.assertEqual(problems('base/a.cpp', long_function(80), {('function', 'base/a.cpp:f'): 80}), [])
        self.assertEqual(len(problems('base/a.cpp', long_function(81), {('function', 'base/a.cpp:f'): 80})), 1)
        self.assertIn('shrunk', problems('base/a.cpp', long_function(79), {('function', 'base/a.cpp:f'): 80})[0])
        self.assertEqual(problems('base/a.cpp', 'int x;\n' * 600), [])
        self.assertEqual(len(problems('base/a.cpp', 'int x;\n' * 601)), 1)

    def test_ratchet_file(self):
        self.assertEqual(tidy.load_ratchet('# c\n\nfile a 700\n'), {('file', 'a'): 700})


if __name__ == '__main__':
    unittest.main()
