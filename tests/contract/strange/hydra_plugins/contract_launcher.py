"""A launcher of the user's: one job after the other, each in a process of its own."""

import multiprocessing
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, run_job
from hydra.plugins.launcher import Launcher


@dataclass
class Settings:
    _target_: str = "hydra_plugins.contract_launcher.OneByOne"


ConfigStore.instance().store(group="hydra/launcher", name="one_by_one", node=Settings, provider="contract")


class OneByOne(Launcher):
    def setup(self, *, hydra_context, task_function, config):
        self.config, self.context, self.task = config, hydra_context, task_function

    def launch(self, job_overrides, initial_job_idx):
        context = multiprocessing.get_context("fork")
        for i, overrides in enumerate(job_overrides):
            child = context.Process(target=self.one, args=(initial_job_idx + i, list(overrides)))
            child.start()
            child.join()
        return [JobReturn(overrides=list(o), status=JobStatus.COMPLETED) for o in job_overrides]

    def one(self, index, overrides):
        from hydra.core.singleton import Singleton
        from omegaconf import open_dict

        state = Singleton.get_state()
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(index), index
        Singleton.set_state(state)
        print("one by one:", " ".join(filter_overrides(overrides)), flush=True)
        run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
