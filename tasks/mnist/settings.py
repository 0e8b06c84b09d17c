"""Settings of the study on handwritten digits."""

from pydantic import ConfigDict, Field

from trackstar.tasks.runtime.settings import Settings

DIGITS, MNIST = "digits", "mnist"
NUM_CHECKPOINTS = 10


class StudyConfig(Settings):
    """The set-up of the study."""

    model_config = ConfigDict(title="Study")

    num_seeds: int = Field(10, ge=2, description="Models of each variant; intervals are over them.")
    num_images: int = Field(10_000, ge=200, description="At most so many images of the source are used.")
    num_hidden: int = Field(32, ge=1, description="Hidden units.")
    num_steps: int = Field(1000, ge=NUM_CHECKPOINTS, description="Adam steps.")
    batch_size: int = Field(64, ge=1, description="Images of one step.")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's step size.")
    num_nuisances: int = Field(16, ge=1, description="Extra inputs of the noisy variant.")
    nuisance_scale: float = Field(15.0, gt=0, description="Their standard deviation; pixels lie between 0 and 1.")
    num_candidates: int = Field(500, ge=20, description="Training images that are scored and that R_train is made of.")
    num_queries: int = Field(500, ge=10, description="Evaluation images that ask and that R_eval is made of.")
    projection_dim: int = Field(8, ge=1, description="k: a weight matrix becomes k×k numbers, a bias k.")
    epsilon: float = Field(1e-3, gt=0, lt=1, description="Floor of √V, relative to the root of V's mean.")
    damping: float = Field(1e-6, ge=0, description="Added to R_train, relative to its mean eigenvalue.")
    mixing_weight: float = Field(0.5, ge=0, lt=1, description="λ of R = λ R_eval + (1-λ) R_train.")

    @property
    def num_dims(self) -> int:
        return 2 * self.projection_dim * (self.projection_dim + 1)
