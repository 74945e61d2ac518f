# `make demo` and `make test` do all the set-up; the rest builds on the same environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo lab test test-fast test-oldest test-oldest-few test-gpu nightly nightly-deepspeed nightly-formats nightly-images nightly-patch nightly-servers bench bench-full bench-gpu lint lint-style lint-types lint-rooms tables docs dist eval-demo eval-native-demo clean

demo: $(INSTALLED)
	$(BIN)/python notebooks/execute.py notebooks/01_quickstart.ipynb

lab: $(INSTALLED)
	$(BIN)/jupyter lab notebooks/01_quickstart.ipynb

# A process for each core, and one thread in each: small tensors gain nothing from more. Files go
# to the processes in the order of collection (tests/conftest.py: those that take longest first), not
# in that of their number of tests. Byte code is kept: compiling the tests takes longer than most.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
	--numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED)
	$(BIN)/python docs/planner.py
	$(PYTEST)

# While working: no browser, kernel or server, and none of the long files (tests/slow_files.py).
test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow and not nightly and not browser and not gpu"

# The magics' tests with the oldest versions that pyproject.toml allows, those of Colab and Kaggle, in
# an environment of their own. Without JupyterLab: no browser.
test-oldest: build/oldest/.installed
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 build/oldest/bin/python -m pytest \
		--numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		-m "not nightly and not browser and not gpu" \
		--ignore-glob='*_browser.py' --ignore=tests/notebook/test_fronts.py tests/notebook tests/session \
		tests/checkpoints/test_native_fp8.py

# Of them CI runs these; `make nightly` runs all. Left out is what takes long: of commands that start
# servers, plan or check (serve, plan, check: 36 s of processor time), that every option matters (21 s),
# what hundreds of hostile or odd inputs do (hostile_inputs, notebook_traps: 20 s), forms of rows, a
# kernel with a chat, a video; and render_*, which write text that IPython has no part in.
FEW := as_people_type chat_commands completion devices_command engine_flags form_options \
	inspect_command interrupts live magics monitor options over patch_command settings stop_button \
	stop_while_starting task_cells terminal thinking_cells widgets widgets_kernel

test-oldest-few: build/oldest/.installed
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 build/oldest/bin/python -m pytest -q \
		--numprocesses auto --maxprocesses 2 --dist loadfile --no-loadscope-reorder \
		-m "not nightly and not browser and not gpu" $(FEW:%=tests/notebook/test_%.py)

build/oldest/.installed: pyproject.toml constraints.txt constraints-oldest.txt
	$(PYTHON) -m venv build/oldest
	old=$$(sed -n 's/==.*//p' constraints-oldest.txt | paste -s -d '|' -); \
	{ cat constraints-oldest.txt; grep -v -i -E "^($$old)==" constraints.txt; } \
		> build/oldest/constraints.txt
	build/oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint build/oldest/constraints.txt \
		--editable '.[compressed,forms,lora,parquet,pdf,quantize,server,video]' \
		hypothesis ipykernel matplotlib nbclient nbconvert pandas pexpect pytest pytest-xdist
	touch $@

# On a machine with a GPU: answers, memory and mixed devices, held against those of the CPU.
test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

# Everything that takes too long for every change: all random device maps, the oldest versions.
nightly: $(INSTALLED) test-oldest
	$(PYTEST) -m nightly

# Pillow's own test images, from its source distribution; they stay in build/.
nightly-images: $(INSTALLED) build/pillow
	$(PYTEST) -m nightly tests/images/test_pillow_images.py

build/pillow:
	mkdir -p build/download
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
		--dest build/download $$(grep '^pillow==' constraints.txt)
	tar -xzf build/download/pillow-*.tar.gz -C build/download
	mv build/download/pillow-*/ build/pillow

# Files that Pillow does not read, with the packages that a message names for them, in an environment
# of its own; tifffile writes one of them. Pillow 11.3 and later read AVIF: an older one has another.
nightly-formats:
	$(PYTHON) -m venv build/formats
	build/formats/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[test]' astropy cfgrib h5py OpenEXR \
		opencv-python-headless pillow-heif pillow-jxl-plugin pydicom rawpy resvg-py tifffile xarray
	$(PYTHON) -m venv build/pillow-10
	build/pillow-10/bin/python -m pip install --quiet --disable-pip-version-check \
		pillow==10.3.0 numpy pillow-avif-plugin
	GLM4V_OLD_PILLOW=$(CURDIR)/build/pillow-10/bin/python \
		build/formats/bin/python -m pytest -m nightly tests/images/test_formats_followed.py

# The patch of published code with the transformers that runs it, in an environment of its own.
nightly-patch:
	$(PYTHON) -m venv build/transformers-4
	grep -v -E '^(huggingface_hub|tokenizers|transformers)==' constraints.txt > build/transformers-4/constraints.txt
	build/transformers-4/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint build/transformers-4/constraints.txt torch accelerate transformers==4.48.3
	build/transformers-4/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --no-deps . libcst
	build/transformers-4/bin/python tests/remote_code/with_transformers_4.py

# Parts of weights as DeepSpeed writes them, merged by the program that it leaves beside them, in an
# environment of its own. None of its operators is built: they are for GPUs.
nightly-deepspeed: $(INSTALLED)
	$(PYTHON) -m venv build/deepspeed
	DS_BUILD_OPS=0 build/deepspeed/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt torch safetensors huggingface_hub deepspeed==0.19.8
	GLM4V_DEEPSPEED=$(CURDIR)/build/deepspeed/bin/python \
		$(BIN)/python -m pytest -m nightly tests/checkpoints/test_deepspeed.py

# Other people's servers, for real. LiteLLM's packages exclude some of ours (boto3 wants an older
# python-dateutil), and llama-cpp-python is compiled, which takes minutes and a C++ compiler: both
# have an environment of their own. Of vLLM and SGLang only the flags are looked up, in their packages.
nightly-servers: $(INSTALLED)
	$(PYTHON) -m venv build/litellm
	build/litellm/bin/python -m pip install --quiet --disable-pip-version-check 'litellm[proxy]==1.108.7'
	$(PYTHON) -m venv build/llama-cpp
	CMAKE_ARGS=-DLLAVA_BUILD=OFF build/llama-cpp/bin/python -m pip install --quiet \
		--disable-pip-version-check 'llama-cpp-python[server]==0.3.36' gguf
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps \
		--dest build/engines vllm==0.33.0 sglang==0.5.23
	GLM4V_LITELLM=$(CURDIR)/build/litellm/bin/python \
		GLM4V_LLAMA_CPP=$(CURDIR)/build/llama-cpp/bin/python \
		GLM4V_WHEELS=$(CURDIR)/build/engines \
		$(BIN)/python -m pytest -m nightly tests/engines/test_real_servers.py \
		tests/notebook/test_engine_flags.py

# Every benchmark in a short form, some ten minutes on two idle cores; `bench-full` for figures to
# quote, which takes an hour or two.
bench: $(INSTALLED) docs
	$(BIN)/python benchmarks/load_ext.py --runs 3
	$(BIN)/python benchmarks/first_cell.py --runs 2
	$(BIN)/python benchmarks/tab.py --runs 2
	$(BIN)/python benchmarks/tokens_per_second.py --runs 7 --tokens 60
	$(BIN)/python benchmarks/batch.py --runs 2
	$(BIN)/python benchmarks/follow_up.py --runs 1 --tokens 4
	$(BIN)/python benchmarks/follow_up.py --runs 1 --tokens 4 --rows 32 --visual-tokens 402
	$(BIN)/python benchmarks/refill.py --runs 1 --rows 32
	$(BIN)/python benchmarks/serve.py --rounds 1 --tokens 16
	$(BIN)/python benchmarks/over_server.py
	$(BIN)/python benchmarks/monitor.py --runs 3 --answers 5 --tokens 100
	$(BIN)/python benchmarks/dry_run.py
	$(BIN)/python benchmarks/speed_limit.py
	$(BIN)/python benchmarks/load_memory.py --layers 1
	$(BIN)/python benchmarks/load_time.py --runs 5 --quick
	$(BIN)/python benchmarks/placement.py --gpus 2-3
	$(BIN)/python benchmarks/web_planner.py --runs 1

bench-full: $(INSTALLED) docs
	$(BIN)/python benchmarks/load_ext.py
	$(BIN)/python benchmarks/first_cell.py
	$(BIN)/python benchmarks/tab.py
	$(BIN)/python benchmarks/tokens_per_second.py
	$(BIN)/python benchmarks/batch.py
	$(BIN)/python benchmarks/follow_up.py
	$(BIN)/python benchmarks/follow_up.py --rows 32
	$(BIN)/python benchmarks/refill.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/over_server.py --rows 64
	$(BIN)/python benchmarks/replicas.py --rows 32 --rounds 2
	$(BIN)/python benchmarks/monitor.py
	$(BIN)/python benchmarks/dry_run.py
	$(BIN)/python benchmarks/speed_limit.py
	$(BIN)/python benchmarks/load_memory.py
	$(BIN)/python benchmarks/load_time.py
	$(BIN)/python benchmarks/placement.py
	$(BIN)/python benchmarks/web_planner.py

# On a GPU with 40 GiB or more: a model as large as GLM-4V-9B, of random weights (26 GiB of disk).
bench-gpu: $(INSTALLED)
	$(BIN)/python benchmarks/full_size.py build/full-size
	$(BIN)/python benchmarks/real_gpu.py --folder build/full-size
	$(BIN)/python benchmarks/load_time.py --runs 3 --checkpoint build/full-size
	$(BIN)/python benchmarks/tokens_per_second.py --runs 5 --tokens 100 --checkpoint build/full-size
	$(BIN)/python benchmarks/follow_up.py --runs 3 --checkpoint build/full-size
	$(BIN)/python benchmarks/follow_up.py --runs 3 --rows 32 --checkpoint build/full-size
	$(BIN)/python benchmarks/refill.py --checkpoint build/full-size
	$(BIN)/python benchmarks/tokens_per_second.py --runs 9 --tokens 100
	$(BIN)/python benchmarks/batch.py --runs 3

lint: lint-style lint-types lint-rooms

lint-style: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: $(INSTALLED)
	$(BIN)/mypy

lint-rooms: $(INSTALLED)
	$(BIN)/lint-imports --no-cache

# The tables of what a plan chooses, in the page about plans.
tables: $(INSTALLED)
	$(BIN)/python benchmarks/chosen_gpus.py --write docs/planning.md
	$(BIN)/python benchmarks/machines.py --write docs/planning.md

# Into build/site. Every warning, such as a dead link, is an error; not so with --quiet. The planner in
# the browser needs npm, once: what it fetches stays in build/. Without it the first command says that
# the page plans nothing and that `make test` skips its tests.
docs: $(INSTALLED)
	$(BIN)/python docs/planner.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Into dist; then the wheel answers a question in an environment of its own, away from the sources.
dist: $(INSTALLED)
	rm -rf dist build/wheel
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt dist/*.whl
	build/wheel/bin/python -I tests/wheel.py notebooks/shapes.png
	ls -l dist

eval-demo: $(INSTALLED)
	$(BIN)/python -m training.evaluate

eval-native-demo: $(INSTALLED)
	$(BIN)/python -m training.native.evaluate

# Installed once, and again whenever what is to be installed has changed.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
