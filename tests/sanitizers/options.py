"""What a program built with sanitizers is told through its environment, and where it leaves its reports.

Programs built without them do not look at any of this.
"""

import os

FOLDER = os.path.dirname(os.path.abspath(__file__))


def environment(reports, aborts=False):
    """Environment variables. `reports`: a folder into which each process writes what it finds, whoever started it. `aborts`: an abort is a
    finding, too; gcc's UBSan writes to standard error whatever it is told, and reports only so.
    """
    log_path = f':log_path={reports}/report'
    return {
        'ASAN_OPTIONS': 'detect_leaks=1:detect_stack_use_after_return=1' + f':handle_abort={aborts:d}' + log_path,
        'LSAN_OPTIONS': f'suppressions={FOLDER}/lsan.supp:print_suppressions=0',
        'UBSAN_OPTIONS': 'print_stacktrace=1:halt_on_error=1:abort_on_error=1' + log_path,
        'TSAN_OPTIONS': f'suppressions={FOLDER}/tsan.supp:halt_on_error=0:second_deadlock_stack=1' + log_path,
    }


def take_reports(folder):
    """The text of all reports in the folder, which is empty then; "" if there was none."""
    text = ''
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        with open(path, encoding='utf-8', errors='replace') as file:
            text += file.read()
        os.remove(path)
    return text
