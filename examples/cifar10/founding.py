# The program of the document that Everstep was founded on, block by block, with nothing changed but its import lines.
# train.py beside it runs it on small files in CIFAR-10's format.

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, random_split
import torchvision
import torchvision.transforms as transforms
import everstep as pl
from everstep import LightningModule, LightningDataModule, Trainer
from everstep.callbacks import ModelCheckpoint, EarlyStopping, LearningRateMonitor
from everstep.loggers import TensorBoardLogger
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import classification_report, confusion_matrix
import seaborn as sns

# What's happening: Setting up PyTorch Lightning environment and checking versions
# Why this step: Ensuring compatibility and proper configuration for Lightning training

print(f"PyTorch version: {torch.__version__}")
print(f"PyTorch Lightning version: {pl.__version__}")
print(f"CUDA available: {torch.cuda.is_available()}")

# Set random seeds for reproducibility
pl.seed_everything(42, workers=True)

# What's happening: Creating a Lightning DataModule to encapsulate all data-related logic
# Why this approach: DataModules provide a clean interface for data handling and enable
# easy sharing of data preprocessing across different models and experiments

class CIFAR10DataModule(LightningDataModule):
    """Lightning DataModule for CIFAR-10 dataset"""

    def __init__(self, data_dir='./data', batch_size=128, num_workers=4):
        super().__init__()
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.num_workers = num_workers

        # What's happening: Defining data transformations for training and testing
        # Why different transforms: Training uses augmentation for better generalization,
        # testing uses only normalization for consistent evaluation
        self.transform_train = transforms.Compose([
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.RandomRotation(10),
            transforms.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
        ])

        self.transform_test = transforms.Compose([
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
        ])

        self.dims = (3, 32, 32)
        self.num_classes = 10

    def prepare_data(self):
        """Download data if needed (called once per node)"""
        # What's happening: Downloading CIFAR-10 dataset if not already present
        # Why prepare_data: This method is called once per node in distributed training
        torchvision.datasets.CIFAR10(self.data_dir, train=True, download=True)
        torchvision.datasets.CIFAR10(self.data_dir, train=False, download=True)

    def setup(self, stage=None):
        """Setup datasets for training, validation, and testing"""
        # What's happening: Creating dataset splits for different training stages
        # Why setup method: Called on every GPU/process in distributed training

        if stage == 'fit' or stage is None:
            # Load training data and create train/val split
            cifar_full = torchvision.datasets.CIFAR10(
                self.data_dir, train=True, transform=self.transform_train
            )
            train_size = int(0.8 * len(cifar_full))
            val_size = len(cifar_full) - train_size
            self.cifar_train, self.cifar_val = random_split(
                cifar_full, [train_size, val_size]
            )

        if stage == 'test' or stage is None:
            self.cifar_test = torchvision.datasets.CIFAR10(
                self.data_dir, train=False, transform=self.transform_test
            )

    def train_dataloader(self):
        """Return training dataloader"""
        return DataLoader(
            self.cifar_train,
            batch_size=self.batch_size,
            shuffle=True,
            num_workers=self.num_workers,
            pin_memory=True
        )

    def val_dataloader(self):
        """Return validation dataloader"""
        return DataLoader(
            self.cifar_val,
            batch_size=self.batch_size,
            shuffle=False,
            num_workers=self.num_workers,
            pin_memory=True
        )

    def test_dataloader(self):
        """Return test dataloader"""
        return DataLoader(
            self.cifar_test,
            batch_size=self.batch_size,
            shuffle=False,
            num_workers=self.num_workers,
            pin_memory=True
        )

# Initialize data module
data_module = CIFAR10DataModule(batch_size=128, num_workers=4)
print("CIFAR-10 DataModule created")

# What's happening: Creating a LightningModule that encapsulates model, training, and optimization logic
# Why LightningModule: Provides a structured way to organize all model-related code
# with automatic handling of training loops, validation, and testing

class LightningCNN(LightningModule):
    """Lightning Module for CIFAR-10 classification using CNN"""

    def __init__(self, num_classes=10, learning_rate=1e-3, dropout_rate=0.3):
        super().__init__()

        # Save hyperparameters for automatic logging
        self.save_hyperparameters()

        self.learning_rate = learning_rate
        self.num_classes = num_classes

        # What's happening: Defining CNN architecture with multiple conv blocks
        # Why this architecture: Progressive feature extraction with increasing channels
        self.features = nn.Sequential(
            # First conv block
            nn.Conv2d(3, 32, kernel_size=3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, kernel_size=3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
            nn.Dropout2d(0.25),

            # Second conv block
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, kernel_size=3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
            nn.Dropout2d(0.25),

            # Third conv block
            nn.Conv2d(64, 128, kernel_size=3, padding=1),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 128, kernel_size=3, padding=1),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
            nn.Dropout2d(0.25),
        )

        # Classifier head
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Flatten(),
            nn.Linear(128, 256),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout_rate),
            nn.Linear(256, num_classes)
        )

        # Initialize weights
        self._initialize_weights()

        # Metrics for tracking
        self.train_accuracy = pl.metrics.Accuracy()
        self.val_accuracy = pl.metrics.Accuracy()
        self.test_accuracy = pl.metrics.Accuracy()

    def _initialize_weights(self):
        """Initialize network weights"""
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')
                if m.bias is not None:
                    nn.init.constant_(m.bias, 0)
            elif isinstance(m, nn.BatchNorm2d):
                nn.init.constant_(m.weight, 1)
                nn.init.constant_(m.bias, 0)
            elif isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0, 0.01)
                nn.init.constant_(m.bias, 0)

    def forward(self, x):
        """Forward pass through the network"""
        # What the algorithm is learning: Hierarchical visual features
        # from low-level edges to high-level semantic representations
        x = self.features(x)
        x = self.classifier(x)
        return x

    def training_step(self, batch, batch_idx):
        """Single training step"""
        # What's happening: Lightning automatically handles the training loop,
        # we just define what happens for each batch
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)

        # Log metrics
        preds = torch.argmax(logits, dim=1)
        self.train_accuracy(preds, y)

        # Lightning automatically logs these
        self.log('train_loss', loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log('train_acc', self.train_accuracy, on_step=True, on_epoch=True, prog_bar=True)

        return loss

    def validation_step(self, batch, batch_idx):
        """Single validation step"""
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)

        # Calculate accuracy
        preds = torch.argmax(logits, dim=1)
        self.val_accuracy(preds, y)

        # Log metrics
        self.log('val_loss', loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log('val_acc', self.val_accuracy, on_step=False, on_epoch=True, prog_bar=True)

        return loss

    def test_step(self, batch, batch_idx):
        """Single test step"""
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)

        # Calculate accuracy
        preds = torch.argmax(logits, dim=1)
        self.test_accuracy(preds, y)

        # Log metrics
        self.log('test_loss', loss, on_step=False, on_epoch=True)
        self.log('test_acc', self.test_accuracy, on_step=False, on_epoch=True)

        return {'test_loss': loss, 'preds': preds, 'targets': y}

    def configure_optimizers(self):
        """Configure optimizer and learning rate scheduler"""
        # What's happening: Setting up optimizer and learning rate scheduling
        # Why this configuration: Adam for adaptive learning rates with cosine annealing
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate, weight_decay=1e-4)

        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=100, eta_min=1e-6
        )

        return {
            'optimizer': optimizer,
            'lr_scheduler': {
                'scheduler': scheduler,
                'monitor': 'val_loss',
                'interval': 'epoch',
                'frequency': 1
            }
        }

# Initialize model
model = LightningCNN(num_classes=10, learning_rate=1e-3)
print(f"Model created with {sum(p.numel() for p in model.parameters()):,} parameters")

# What's happening: Setting up Lightning Trainer with callbacks and loggers
# Why these components: Callbacks provide modular functionality, loggers enable experiment tracking

# Configure callbacks
checkpoint_callback = ModelCheckpoint(
    monitor='val_acc',
    mode='max',
    save_top_k=3,
    filename='best-checkpoint-{epoch:02d}-{val_acc:.2f}',
    save_last=True
)

early_stopping_callback = EarlyStopping(
    monitor='val_loss',
    patience=10,
    mode='min',
    verbose=True
)

lr_monitor = LearningRateMonitor(
    logging_interval='epoch'
)

# Configure logger
logger = TensorBoardLogger(
    save_dir='lightning_logs',
    name='cifar10_cnn',
    version='v1.0'
)

# What's happening: Creating Lightning Trainer with comprehensive configuration
# Why this setup: Trainer handles all training complexity while providing flexibility
trainer = Trainer(
    max_epochs=50,
    accelerator='auto',  # Automatically detect GPU/CPU
    devices='auto',      # Use all available devices
    strategy='auto',     # Automatic strategy selection
    precision=16,        # Mixed precision for memory efficiency

    # Callbacks
    callbacks=[checkpoint_callback, early_stopping_callback, lr_monitor],

    # Logging
    logger=logger,
    log_every_n_steps=50,

    # Validation
    val_check_interval=1.0,
    check_val_every_n_epoch=1,

    # Performance
    benchmark=True,      # Optimize for consistent input shapes
    deterministic=True,  # Ensure reproducible results

    # Development options
    fast_dev_run=False,  # Set to True for quick testing
    enable_progress_bar=True,
    enable_model_summary=True
)

print("Lightning Trainer configured with:")
print(f"- Max epochs: {trainer.max_epochs}")
print(f"- Accelerator: {trainer.accelerator}")
print(f"- Precision: {trainer.precision}")
print(f"- Callbacks: {len(trainer.callbacks)}")

# What's happening: Running the complete training process with Lightning
# What the algorithm is learning: Image classification through CNN feature hierarchies
# with automatic optimization, validation, and checkpointing

print("Starting Lightning training...")
print("=" * 60)

# Fit the model
trainer.fit(model, data_module)

print(f"Training completed!")
print(f"Best validation accuracy: {checkpoint_callback.best_model_score:.4f}")
print(f"Best model path: {checkpoint_callback.best_model_path}")

# What's happening: Comprehensive model evaluation using Lightning's testing framework
# How to interpret results: Lightning automatically aggregates metrics across test batches

# Test the best model
print("Testing best model...")
test_results = trainer.test(model, data_module, ckpt_path='best')

# Load best checkpoint for detailed evaluation
best_model = LightningCNN.load_from_checkpoint(
    checkpoint_callback.best_model_path,
    num_classes=10
)
best_model.eval()

def evaluate_model_detailed(model, data_module):
    """Detailed evaluation with confusion matrix and per-class metrics"""
    # What's happening: Manual evaluation for detailed analysis beyond Lightning's automatic metrics
    # Why manual evaluation: Provides additional insights like confusion matrices and per-class performance

    model.eval()
    all_preds = []
    all_targets = []

    test_loader = data_module.test_dataloader()

    with torch.no_grad():
        for batch in test_loader:
            x, y = batch
            if torch.cuda.is_available():
                x, y = x.cuda(), y.cuda()

            logits = model(x)
            preds = torch.argmax(logits, dim=1)

            all_preds.extend(preds.cpu().numpy())
            all_targets.extend(y.cpu().numpy())

    # Calculate metrics
    classes = ['plane', 'car', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']

    print("Detailed Classification Report:")
    print(classification_report(all_targets, all_preds, target_names=classes))

    # Confusion matrix
    cm = confusion_matrix(all_targets, all_preds)
    plt.figure(figsize=(10, 8))
    sns.heatmap(cm, annot=True, fmt='d', cmap='Blues',
                xticklabels=classes, yticklabels=classes)
    plt.title('Confusion Matrix')
    plt.ylabel('True Label')
    plt.xlabel('Predicted Label')
    plt.show()

    # Per-class accuracy
    class_correct = np.diag(cm)
    class_total = cm.sum(axis=1)
    class_accuracy = class_correct / class_total

    print("\nPer-class Accuracy:")
    for i, class_name in enumerate(classes):
        print(f"{class_name}: {class_accuracy[i]:.3f}")

    return all_preds, all_targets

# Run detailed evaluation
print("Running detailed evaluation...")
predictions, targets = evaluate_model_detailed(best_model, data_module)

# What's happening: Demonstrating Lightning's advanced features for production deployment
# How to use in practice: Model optimization, experiment tracking, and deployment preparation

import torch.jit as jit
from everstep.utilities.model_summary import ModelSummary

def lightning_model_to_torchscript(lightning_model, example_input):
    """Convert Lightning model to TorchScript for production"""
    # What's happening: Converting Lightning model to optimized TorchScript format
    # Why this step: TorchScript provides faster inference and deployment capabilities

    lightning_model.eval()

    # Extract the PyTorch model from Lightning wrapper
    torch_model = lightning_model.cpu()

    # Trace the model
    traced_model = torch.jit.trace(torch_model, example_input)

    # Optimize for inference
    traced_model = torch.jit.optimize_for_inference(traced_model)

    return traced_model

def create_inference_pipeline(model_path, device='cpu'):
    """Create production inference pipeline"""

    class LightningInferenceEngine:
        def __init__(self, model_path, device='cpu'):
            self.device = device
            self.model = LightningCNN.load_from_checkpoint(model_path)
            self.model.eval()
            self.model = self.model.to(device)

            # Preprocessing
            self.transform = transforms.Compose([
                transforms.ToTensor(),
                transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
            ])

            self.classes = ['plane', 'car', 'bird', 'cat', 'deer',
                           'dog', 'frog', 'horse', 'ship', 'truck']

        def predict(self, image):
            """Predict single image"""
            if not isinstance(image, torch.Tensor):
                image = self.transform(image)

            image = image.unsqueeze(0).to(self.device)

            with torch.no_grad():
                logits = self.model(image)
                probabilities = F.softmax(logits, dim=1)
                confidence, predicted = torch.max(probabilities, 1)

            return {
                'class': self.classes[predicted.item()],
                'confidence': confidence.item(),
                'probabilities': probabilities.squeeze().cpu().numpy()
            }

        def batch_predict(self, images, batch_size=32):
            """Predict batch of images efficiently"""
            results = []

            for i in range(0, len(images), batch_size):
                batch = images[i:i+batch_size]
                batch_tensor = torch.stack([self.transform(img) for img in batch])
                batch_tensor = batch_tensor.to(self.device)

                with torch.no_grad():
                    logits = self.model(batch_tensor)
                    probabilities = F.softmax(logits, dim=1)
                    confidences, predictions = torch.max(probabilities, 1)

                for j in range(len(batch)):
                    results.append({
                        'class': self.classes[predictions[j].item()],
                        'confidence': confidences[j].item(),
                        'probabilities': probabilities[j].cpu().numpy()
                    })

            return results

    return LightningInferenceEngine(model_path, device)

# Model analysis and optimization
print("Analyzing model...")
summary = ModelSummary(best_model, max_depth=-1)
print(summary)

# Create example input for TorchScript conversion
example_input = torch.randn(1, 3, 32, 32)

# Convert to TorchScript
print("Converting to TorchScript...")
torchscript_model = lightning_model_to_torchscript(best_model, example_input)

# Save TorchScript model
torchscript_model.save('lightning_model_scripted.pt')

# Create inference engine
print("Creating inference engine...")
inference_engine = create_inference_pipeline(
    checkpoint_callback.best_model_path,
    device='cuda' if torch.cuda.is_available() else 'cpu'
)

# Test inference engine
test_loader = data_module.test_dataloader()
sample_batch = next(iter(test_loader))
sample_image = sample_batch[0][0]
sample_target = sample_batch[1][0]

result = inference_engine.predict(sample_image)
classes = ['plane', 'car', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']

print(f"\nInference Engine Test:")
print(f"Predicted: {result['class']}")
print(f"Confidence: {result['confidence']:.3f}")
print(f"Actual: {classes[sample_target]}")

# Experiment tracking summary
print(f"\nExperiment Summary:")
print(f"Logger directory: {logger.log_dir}")
print(f"Best checkpoint: {checkpoint_callback.best_model_path}")
print(f"TensorBoard logs: Run 'tensorboard --logdir {logger.save_dir}' to view")

print("\nPyTorch Lightning pipeline complete!")
print("Key Lightning features demonstrated:")
print("1. LightningModule for structured model organization")
print("2. LightningDataModule for clean data handling")
print("3. Trainer with automatic training loops and optimization")
print("4. Callbacks for checkpointing, early stopping, and monitoring")
print("5. Logger integration for experiment tracking")
print("6. Automatic mixed precision and multi-GPU support")
print("7. Model conversion to TorchScript for production")
print("8. Production-ready inference pipeline")
