//! What a program can ask of a device beyond registers and interrupts: tokens, low power, stores that an
//! eventfd makes, migration, and a log of what it writes.

use std::sync::Arc;

use ioasid_core::{
    AddrRange,
    host::{EventfdWatch, FdError, IrqSink},
};

use super::DeviceFile;
use crate::{
    base::error::{FeatureError, Result},
    device::{Feature, MigrationData, MigrationState, StoreRequest, Token},
    dma::write_log::LogRanges,
};

impl DeviceFile {
    /// Whether the device has a feature.
    pub fn has_feature(&self, feature: Feature) -> bool {
        self.core().has(feature)
    }

    /// Sets the token that users of the virtual functions must know.
    ///
    /// # Errors
    /// `BindError::NotBound`, [`FeatureError::Absent`] if it is no physical function.
    pub fn set_token(&self, token: Token) -> Result<()> {
        self.expect_bound()?;
        Ok(self.core().sriov().set_token(token)?)
    }

    /// Lets the device sleep while the program does not use it: mappings of its BARs fault. Its next
    /// use by a program signals `wake` and ends that, if `wake` is given; otherwise it sleeps again
    /// afterwards.
    ///
    /// # Errors
    /// `BindError::NotBound`, [`FeatureError::Absent`] of a child, [`FeatureError::LowPowerAlready`].
    pub fn enter_low_power(&self, wake: Option<Arc<dyn IrqSink>>) -> Result<()> {
        let core = self.core();
        let _exclusive = core.gate().exclusive();
        self.expect_bound()?;
        if !self.has_feature(Feature::LowPower) {
            return Err(FeatureError::Absent(Feature::LowPower).into());
        }
        core.registers().power().enter(wake)?;
        // The host takes it from D0 to sleep and back, whatever state the program has put it into.
        core.hardware().function().power_up();
        Ok(())
    }

    /// Ends that. Nothing to do if the device may not sleep.
    ///
    /// # Errors
    /// `BindError::NotBound`.
    pub fn exit_low_power(&self) -> Result<()> {
        let _exclusive = self.core().gate().exclusive();
        self.expect_bound()?;
        self.core().registers().power().exit();
        Ok(())
    }

    /// The program uses the device: every ioctl says so first, reads and writes do it by themselves. A
    /// device that may sleep with an eventfd is awake from then on.
    pub fn wake(&self) {
        self.core().registers().power().wake();
    }

    /// Lets an eventfd, which `watch` finds, make a store each time that it is signalled; for `None`
    /// takes that back.
    ///
    /// # Errors
    /// `BindError::NotBound`, `IoeventfdError`; the error of `watch` is one of the latter.
    pub fn store_by_eventfd<W>(&self, request: StoreRequest, watch: Option<W>) -> Result<()>
    where
        W: FnOnce(Arc<dyn IrqSink>) -> std::result::Result<Box<dyn EventfdWatch>, FdError>,
    {
        self.expect_bound()?;
        let core = self.core();
        Ok(core.ioeventfds().set(core.registers(), request, watch)?)
    }

    /// Whether the device can be migrated: stopped, saved and restored.
    pub fn can_migrate(&self) -> bool {
        self.device.can_migrate()
    }

    /// Where its migration stands.
    ///
    /// # Errors
    /// `BindError::NotBound`, [`FeatureError::Absent`].
    pub fn migration_state(&self) -> Result<MigrationState> {
        let _shared = self.core().gate().shared();
        self.expect_bound()?;
        let (migration, _) = self.core().migration()?;
        Ok(migration.state())
    }

    /// Takes the device to `wanted`, by way of STOP if need be. May wait for DMA that is under way.
    /// Gives the data of the new state as a file of its own, if it has some: to read in STOP_COPY, to
    /// write in RESUMING. Nothing happens if the device is in that state already.
    ///
    /// # Errors
    /// `BindError::NotBound`, [`FeatureError::Absent`]; `MigrationError::InError` in state ERROR;
    /// `MigrationError::BadState` if what was written is no state of such a device, which is in
    /// state ERROR then; `MigrationError::TooLarge`: it is in STOP then.
    pub fn set_migration_state(
        &self,
        wanted: MigrationState,
    ) -> Result<Option<Arc<MigrationData>>> {
        let core = self.core();
        let _exclusive = core.gate().exclusive();
        self.expect_bound()?;
        let (migration, model) = core.migration()?;
        Ok(migration.set_state(core.hardware(), model, wanted)?)
    }

    /// Takes the next bytes of the saved state, at most `count`; none at its end.
    ///
    /// # Errors
    /// `BindError::NotBound`, [`FeatureError::Absent`]; `MigrationError::OtherState` unless in
    /// STOP_COPY.
    pub fn read_migration(&self, count: usize) -> Result<Vec<u8>> {
        let _shared = self.core().gate().shared();
        self.expect_bound()?;
        let (migration, _) = self.core().migration()?;
        Ok(migration.read(count)?)
    }

    /// Adds bytes to the state that is to be restored.
    ///
    /// # Errors
    /// `BindError::NotBound`, [`FeatureError::Absent`]; `MigrationError::OtherState` unless in
    /// RESUMING; `MigrationError::TooLarge`.
    pub fn write_migration(&self, data: &[u8]) -> Result<()> {
        let _shared = self.core().gate().shared();
        self.expect_bound()?;
        let (migration, _) = self.core().migration()?;
        Ok(migration.write(data)?)
    }

    /// Bytes that are left to read in STOP_COPY; otherwise the most that there will be.
    ///
    /// # Errors
    /// `BindError::NotBound`, [`FeatureError::Absent`].
    pub fn migration_size(&self) -> Result<u64> {
        let _shared = self.core().gate().shared();
        self.expect_bound()?;
        let (migration, _) = self.core().migration()?;
        Ok(migration.size())
    }

    /// Logs from now on which pages the device writes; returns the size of a page of the log, in
    /// bytes: what `ranges` asks for if that can be, else the nearest. When it returns, no write
    /// is missed any more. It goes on over a reset, and ends when the file is closed.
    ///
    /// # Errors
    /// `BindError::NotBound`, [`FeatureError::Absent`] of an emulated device,
    /// `DmaLogError::Started` if there is a log, `DmaLogError::NoRange`, or
    /// `DmaLogError::PageSize` for pages of no power of two.
    pub fn start_dma_log(&self, ranges: LogRanges) -> Result<u64> {
        // Nothing is attached meanwhile.
        let _state = self.state.lock();
        self.expect_bound()?;
        let requester = self.core().hardware().requester();
        let requester = requester.ok_or(FeatureError::Absent(Feature::DmaLog))?;
        Ok(self.core().dma_log().start(requester, ranges)?)
    }

    /// Ends the log. Nothing to do if there is none.
    ///
    /// # Errors
    /// `BindError::NotBound`.
    pub fn stop_dma_log(&self) -> Result<()> {
        self.expect_bound()?;
        self.core().dma_log().stop();
        Ok(())
    }

    /// Reports to `found` what the device has written in `range`, in ascending order, rounded to pages
    /// of the log but within `range`, and takes it out of the log. Waits for the DMA that is under way.
    ///
    /// # Errors
    /// `BindError::NotBound`; `DmaLogError::NotStarted` if there is no log;
    /// `DmaLogError::NotLogged` if not all of `range` is watched; `DmaLogError::Overrun`.
    pub fn report_dma_log(&self, range: AddrRange, found: &mut dyn FnMut(AddrRange)) -> Result<()> {
        let state = self.state.lock();
        self.expect_bound()?;
        let log = self.core().dma_log().complete(range)?;
        // What is done with it may take as long as it likes.
        drop(state);
        Ok(log.take(range, found)?)
    }
}
