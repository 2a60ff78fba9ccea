"""A fresh SQLite store for each test, copied from one that is made once; and a browser."""

import shutil
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def first_contact(tmp_path_factory):
    """Initialise a store in a process of its own; return the database and what the process printed."""
    path = tmp_path_factory.mktemp("store") / "new" / "mlflow.db"
    code = f"from harness.tracking.store import initialise_store; print(initialise_store('sqlite:///{path}'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return path, done.stdout, done.stderr


@pytest.fixture(scope="module")
def fresh_database(first_contact):
    return first_contact[0]


@pytest.fixture
def store(fresh_database, tmp_path, monkeypatch):
    """A fresh SQLite store, set as the one to use."""
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="module")
def driver(browser_programs):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser_programs["chromium"]
    # A container has no sandbox for root, and little shared memory. Charts are drawn when they are in the window.
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1900,3600")
    driver = webdriver.Chrome(options=options, service=Service(browser_programs["chromedriver"]))
    yield driver
    driver.quit()
